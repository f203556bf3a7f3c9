#include "state/userns/userns.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "sys/file.h"
#include "tracee/batch.h"

namespace ferry::state::userns {
namespace {

constexpr int kPatienceMs = 10'000;
constexpr int kMaxExtents = 340;  // user_namespaces(7)

Result<void> check(const Extents& map, const char* what) {
  if (map.empty() || map.size() > kMaxExtents) {
    return fail(Kind::corrupt, "a {} with {} lines", what, map.size());
  }
  return {};
}

// Only system calls: the parent may have other threads, whose locks are copied as they are.
[[noreturn]] void serve(int orders, int answers) {
  (void)::prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) {
    int ns = -1;
    if (::read(orders, &ns, sizeof ns) != sizeof ns) {
      ::_exit(1);
    }
    const int answer = ::setns(ns, CLONE_NEWUSER) == 0 ? 0 : errno;
    if (::write(answers, &answer, sizeof answer) != sizeof answer) {
      ::_exit(1);
    }
  }
}

}  // namespace

Result<Extents> parse_map(std::string_view text) {
  Extents out;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    std::uint32_t numbers[3] = {};
    for (std::uint32_t& number : numbers) {
      line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
      const std::size_t word = std::min(line.find(' '), line.size());
      const auto value = sys::parse_number(line.substr(0, word));
      if (!value || *value > 0xffffffff) {
        return fail(Kind::corrupt, "a map of ids has a line that cannot be read");
      }
      number = static_cast<std::uint32_t>(*value);
      line.remove_prefix(word);
    }
    auto& extent = *out.Add();
    extent.set_first(numbers[0]);
    extent.set_lower_first(numbers[1]);
    extent.set_count(numbers[2]);
  }
  return out;
}

std::string format_map(const Extents& map) {
  std::string out;
  for (const auto& extent : map) {
    out += fmt::format("{} {} {}\n", extent.first(), extent.lower_first(), extent.count());
  }
  return out;
}

std::optional<std::uint32_t> inside(const Extents& map, std::uint32_t id) {
  for (const auto& extent : map) {
    if (id >= extent.lower_first() && id - extent.lower_first() < extent.count()) {
      return extent.first() + (id - extent.lower_first());
    }
  }
  return std::nullopt;
}

std::optional<std::uint32_t> outside(const Extents& map, std::uint32_t id) {
  for (const auto& extent : map) {
    if (id >= extent.first() && id - extent.first() < extent.count()) {
      return extent.lower_first() + (id - extent.first());
    }
  }
  return std::nullopt;
}

Result<void> collect(DumpContext& context) {
  const DumpTask& root = context.root();
  pb::UsernsEntry entry;
  FERRY_TRY(const auto uids, sys::read_file_at(root.proc.get(), "uid_map"));
  FERRY_TRY(*entry.mutable_uid_map(), parse_map(uids));
  FERRY_TRY(const auto gids, sys::read_file_at(root.proc.get(), "gid_map"));
  FERRY_TRY(*entry.mutable_gid_map(), parse_map(gids));
  if (entry.uid_map().empty() || entry.gid_map().empty()) {
    return fail(Kind::unsupported, "{} lives in a user namespace whose ids are not mapped", root.subject());
  }
  // Missing before Linux 3.19; "deny" is for good (user_namespaces(7)).
  const auto groups = sys::read_file_at(root.proc.get(), "setgroups");
  if (groups.has_value() && groups->starts_with("deny")) {
    entry.set_ferry_setgroups_denied(true);
  }
  context.set.add({image::Type::userns, root.ids->user_ns_id()}, std::move(entry));
  return {};
}

const pb::UsernsEntry* maps_of(const image::Set& set, const pb::TaskKobjIdsEntry& ids) {
  const image::Name name{image::Type::userns, ids.user_ns_id()};
  if (!set.has(name)) {
    return nullptr;
  }
  const auto list = set.list<pb::UsernsEntry>(name);
  return list.empty() ? nullptr : list.front();
}

Result<void> restore(RestoreContext& context) {
  const pb::UsernsEntry* entry = maps_of(context.set, *context.root().ids);
  if (entry == nullptr) {
    return fail(Kind::corrupt, "the image of the tree's user namespace is missing");
  }
  FERRY_CHECK(check(entry->uid_map(), "uid_map"));
  FERRY_CHECK(check(entry->gid_map(), "gid_map"));
  const std::string proc = fmt::format("/proc/{}", context.root().pid);
  if (entry->ferry_setgroups_denied()) {
    FERRY_CHECK(sys::write_file(proc + "/setgroups", "deny").during("user namespace"));
  }
  FERRY_CHECK(sys::write_file(proc + "/gid_map", format_map(entry->gid_map())).during("user namespace"));
  return sys::write_file(proc + "/uid_map", format_map(entry->uid_map())).during("user namespace");
}

Owner inside(const DumpContext& context, Owner ours) {
  const pb::UsernsEntry* maps = maps_of(context.set, *context.tasks.front()->ids);
  if (maps == nullptr) {
    return ours;
  }
  return {inside(maps->uid_map(), ours.uid).value_or(ours.uid), inside(maps->gid_map(), ours.gid).value_or(ours.gid)};
}

Owner outside(RestoreContext& context, Owner theirs) {
  const pb::UsernsEntry* maps = maps_of(context.set, *context.root().ids);
  if (maps == nullptr) {
    return theirs;
  }
  return {outside(maps->uid_map(), theirs.uid).value_or(theirs.uid),
          outside(maps->gid_map(), theirs.gid).value_or(theirs.gid)};
}

Result<void> become_root(RestoreContext& context) {
  const pb::UsernsEntry* entry = maps_of(context.set, *context.root().ids);
  tracee::Batch batch;
  if (entry != nullptr && outside(entry->gid_map(), 0)) {
    batch.must("setresgid", SYS_setresgid, {0, 0, 0});
  }
  if (entry != nullptr && outside(entry->uid_map(), 0)) {
    batch.must("setresuid", SYS_setresuid, {0, 0, 0});
  }
  if (batch.empty()) {
    return {};
  }
  RestoreTask& root = context.root();
  FERRY_CHECK(root.process.run(root.leader(), batch).during("user namespace"));
  return {};
}

Deputy::Deputy(Deputy&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)),
      pidfd_(std::move(other.pidfd_)),
      orders_(std::move(other.orders_)),
      answers_(std::move(other.answers_)) {}

Deputy& Deputy::operator=(Deputy&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(pidfd_, other.pidfd_);
  std::swap(orders_, other.orders_);
  std::swap(answers_, other.answers_);
  return *this;
}

Deputy::~Deputy() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, __WALL) < 0 && errno == EINTR) {
    }
  }
}

Result<Deputy> Deputy::make() {
  int orders[2], answers[2];
  if (::pipe2(orders, O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  const UniqueFd order_end(orders[0]);
  Deputy out;
  out.orders_ = UniqueFd(orders[1]);
  if (::pipe2(answers, O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  out.answers_ = UniqueFd(answers[0]);
  const UniqueFd answer_end(answers[1]);
  // The table is shared, so the child keeps to its own duplicates, which nobody closes before it ends.
  const int own_orders = ::fcntl(order_end.get(), F_DUPFD_CLOEXEC, 0);
  const int own_answers = ::fcntl(answer_end.get(), F_DUPFD_CLOEXEC, 0);
  if (own_orders < 0 || own_answers < 0) {
    return sys_fail("fcntl(F_DUPFD_CLOEXEC)");
  }
  const long pid = ::syscall(SYS_clone, CLONE_FILES, nullptr, nullptr, nullptr, 0UL);
  if (pid == 0) {
    serve(own_orders, own_answers);
  }
  if (pid < 0) {
    return sys_fail("clone(CLONE_FILES)");
  }
  out.pid_ = static_cast<pid_t>(pid);
  out.pidfd_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, out.pid_, 0)));
  if (!out.pidfd_) {
    return sys_fail(fmt::format("pidfd_open({})", out.pid_));
  }
  return out;
}

Result<void> Deputy::enter(HostPid pid) {
  FERRY_TRY(const UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/user", pid), O_RDONLY));
  const int order = ns.get();
  FERRY_CHECK(sys::write_all(orders_.get(), &order, sizeof order, "the deputy's orders"));
  pollfd waiting{answers_.get(), POLLIN, 0};
  if (::poll(&waiting, 1, kPatienceMs) != 1) {
    return sys_fail(ETIMEDOUT, "waiting for the deputy");
  }
  int answer = -1;
  FERRY_CHECK(sys::read_exactly(answers_.get(), &answer, sizeof answer, "the deputy's answer"));
  if (answer != 0) {
    return sys_fail(answer, fmt::format("setns(user namespace of pid {})", pid));
  }
  return {};
}

}  // namespace ferry::state::userns
