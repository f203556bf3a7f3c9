#include "state/seccomp/seccomp.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>

namespace ferry::state::seccomp {
namespace {

constexpr image::Name kName{image::Type::seccomp, 0};
// What may be given to seccomp(2) again: LOG and SPEC_ALLOW.  TSYNC and NEW_LISTENER are requests, not state.
constexpr std::uint32_t kFlags = SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
constexpr std::size_t kMaxChain = 32768;

// struct sock_fprog
struct Program {
  std::uint16_t length;
  std::uint16_t padding[3];
  std::uint64_t filter;
};
static_assert(sizeof(Program) == 16);

pb::SeccompEntry& entry_of(DumpContext& context) {
  const auto& entries = context.set.entries(kName);
  if (entries.empty()) {
    return context.set.add(kName, pb::SeccompEntry());
  }
  const std::shared_ptr<google::protobuf::Message> message = entries.front().message;
  return static_cast<pb::SeccompEntry&>(*message);
}

// The filter that is `index`th from the oldest; ENOENT beyond the newest.
Result<std::string> read_filter(HostPid tid, std::uint64_t index) {
  const long instructions =
      ::ptrace(static_cast<__ptrace_request>(PTRACE_SECCOMP_GET_FILTER), tid.value, index, nullptr);
  if (instructions < 0) {
    return sys_fail(fmt::format("ptrace(SECCOMP_GET_FILTER, {}, {})", tid, index));
  }
  std::string out(static_cast<std::size_t>(instructions) * sizeof(sock_filter), '\0');
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_SECCOMP_GET_FILTER), tid.value, index, out.data()) !=
      instructions) {
    return sys_fail(fmt::format("ptrace(SECCOMP_GET_FILTER, {}, {})", tid, index));
  }
  return out;
}

Result<std::uint32_t> read_flags(HostPid tid, std::uint64_t index) {
  __ptrace_seccomp_metadata metadata{};
  metadata.filter_off = index;
  if (::ptrace(static_cast<__ptrace_request>(PTRACE_SECCOMP_GET_METADATA), tid.value, sizeof metadata, &metadata) < 0) {
    return sys_fail(fmt::format("ptrace(SECCOMP_GET_METADATA, {}, {})", tid, index));
  }
  return static_cast<std::uint32_t>(metadata.flags);
}

Result<std::uint32_t> collect_filters(HostPid tid, pb::SeccompEntry& all) {
  std::optional<std::uint32_t> newest;
  for (std::uint64_t index = 0;; ++index) {
    auto program = read_filter(tid, index);
    if (!program.has_value() && program.error().os_errno == ENOENT) {
      break;
    }
    if (!program.has_value()) {
      return tl::unexpected<Error>(std::move(program).error());
    }
    if (asks_supervisor(std::as_bytes(std::span(*program)))) {
      return fail(Kind::unsupported, "task {} has a seccomp filter that asks a supervisor, which cannot be carried",
                  tid);
    }
    FERRY_TRY(const std::uint32_t flags, read_flags(tid, index));
    pb::SeccompFilter filter;
    filter.set_filter(*program);
    filter.set_flags(flags);
    if (newest) {
      filter.set_prev(*newest);
    }
    newest = intern(all, filter);
  }
  if (!newest) {
    return fail(Kind::os, "task {} is in seccomp filter mode but shows no filter", tid);
  }
  return *newest;
}

}  // namespace

bool asks_supervisor(std::span<const std::byte> program) {
  for (std::size_t at = 0; at + sizeof(sock_filter) <= program.size(); at += sizeof(sock_filter)) {
    sock_filter instruction{};
    std::memcpy(&instruction, program.data() + at, sizeof instruction);
    if (instruction.code == (BPF_RET | BPF_K) && (instruction.k & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF) {
      return true;
    }
  }
  return false;
}

std::uint32_t intern(pb::SeccompEntry& all, const pb::SeccompFilter& filter) {
  // From the end: the threads of a process have the filters that were added last.
  for (int i = all.seccomp_filters_size() - 1; i >= 0; --i) {
    const auto& known = all.seccomp_filters(i);
    if (known.has_prev() == filter.has_prev() && known.prev() == filter.prev() && known.flags() == filter.flags() &&
        known.filter() == filter.filter()) {
      return static_cast<std::uint32_t>(i);
    }
  }
  *all.add_seccomp_filters() = filter;
  return static_cast<std::uint32_t>(all.seccomp_filters_size() - 1);
}

Result<std::vector<const pb::SeccompFilter*>> chain(const pb::SeccompEntry& all, std::uint32_t newest) {
  std::vector<const pb::SeccompFilter*> out;
  for (std::optional<std::uint32_t> next = newest; next;) {
    if (*next >= static_cast<std::uint32_t>(all.seccomp_filters_size())) {
      return fail(Kind::corrupt, "seccomp filter {} is not in seccomp.img, which has {}", *next,
                  all.seccomp_filters_size());
    }
    const auto& filter = all.seccomp_filters(static_cast<int>(*next));
    out.push_back(&filter);
    if (out.size() > kMaxChain || out.size() > static_cast<std::size_t>(all.seccomp_filters_size())) {
      return fail(Kind::corrupt, "the chain of seccomp filter {} has no end", newest);
    }
    next = filter.has_prev() ? std::optional<std::uint32_t>(filter.prev()) : std::nullopt;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

void touch(DumpContext& context) { (void)entry_of(context); }

Answers ask_thread(DumpTask&, DumpThread& thread, tracee::Batch& batch) {
  // Asked of each thread: they may differ, and the call itself passes because filtering is suspended.
  const tracee::Value mode = batch.must("prctl(PR_GET_SECCOMP)", SYS_prctl, {PR_GET_SECCOMP, 0, 0, 0, 0});
  return [&thread, mode](const tracee::Replies& replies) -> Result<void> {
    switch (replies[mode]) {
      case SECCOMP_MODE_DISABLED:
        return {};
      case SECCOMP_MODE_STRICT:
        thread.core->mutable_thread_core()->set_seccomp_mode(pb::SECM_strict);
        return {};
      case SECCOMP_MODE_FILTER:
        thread.core->mutable_thread_core()->set_seccomp_mode(pb::SECM_filter);
        return {};
      default:
        return fail(Kind::unsupported, "task {} is in seccomp mode {}, which is unknown", thread.tid, replies[mode]);
    }
  };
}

void answer_like(const DumpTask& task, DumpThread& thread) {
  const auto& model = task.model_of(thread).core->thread_core();
  if (model.has_seccomp_mode()) {
    thread.core->mutable_thread_core()->set_seccomp_mode(model.seccomp_mode());
  }
}

Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext& context) {
  if (!task.asks(thread)) {
    if (const auto& model = task.model_of(thread).core->thread_core(); model.has_seccomp_filter()) {
      thread.core->mutable_thread_core()->set_seccomp_filter(model.seccomp_filter());
    }
    return {};
  }
  pb::SeccompEntry& all = entry_of(context);
  auto& core = *thread.core->mutable_thread_core();
  if (core.seccomp_mode() == pb::SECM_filter) {
    FERRY_TRY(const std::uint32_t newest, collect_filters(thread.tid, all));
    core.set_seccomp_filter(newest);
  }
  return {};
}

Result<void> restore_thread(RestoreTask&, RestoreThread& thread, RestoreContext& context, tracee::Batch& batch) {
  const auto& core = thread.core->thread_core();
  if (core.seccomp_mode() == pb::SECM_disabled) {
    return {};
  }
  if (core.seccomp_mode() == pb::SECM_strict) {
    batch.must("prctl(PR_SET_SECCOMP)", SYS_prctl, {PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0});
    return {};
  }
  FERRY_TRY(const pb::SeccompEntry* all, context.set.one<pb::SeccompEntry>(kName));
  FERRY_TRY(const auto filters, chain(*all, core.seccomp_filter()));
  for (const pb::SeccompFilter* filter : filters) {
    const std::string& program = filter->filter();
    const std::size_t instructions = program.size() / sizeof(sock_filter);
    if (program.size() % sizeof(sock_filter) != 0 || instructions == 0 || instructions > BPF_MAXINSNS) {
      return fail(Kind::corrupt, "a seccomp filter of task {} has {} bytes", thread.ns_tid, program.size());
    }
    if ((filter->flags() & ~kFlags) != 0) {
      return fail(Kind::unsupported, "a seccomp filter of task {} has flags {:#x}", thread.ns_tid, filter->flags());
    }
    const tracee::Data head = batch.object(Program{static_cast<std::uint16_t>(instructions), {}, 0});
    const tracee::Data code = batch.bytes(std::as_bytes(std::span(program)));
    batch.point(head, offsetof(Program, filter), code);
    batch.must("seccomp(SECCOMP_SET_MODE_FILTER)", SYS_seccomp, {SECCOMP_SET_MODE_FILTER, filter->flags(), head});
  }
  return {};
}

}  // namespace ferry::state::seccomp
