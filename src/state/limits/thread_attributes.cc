// What a thread chose by prctl(2) and the like.
#include <linux/seccomp.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "state/limits/limits.h"
#include "state/limits/scheduling.h"

namespace ferry::state::limits {
namespace {

constexpr std::size_t kNameSize = 16;                  // TASK_COMM_LEN
constexpr int kSetIoFlusher = 57, kGetIoFlusher = 58;  // PR_SET_IO_FLUSHER, PR_GET_…: since Linux 5.6
constexpr std::uint32_t kSpeculations = 3;  // PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH
// PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG and PTRACE_SET_…: since Linux 6.4
constexpr int kGetDispatch = 0x4211, kSetDispatch = 0x4210;

// struct ptrace_sud_config
struct Dispatch {
  std::uint64_t mode, selector, offset, length;
};
static_assert(sizeof(Dispatch) == 32);

// What a task has that chose nothing (Documentation/userspace-api/spec_ctrl.rst).
std::int64_t ordinary(std::uint32_t which) {
  constexpr std::uint32_t kFlushL1 = 2;  // PR_SPEC_L1D_FLUSH: opt in
  return which == kFlushL1 ? PR_SPEC_DISABLE : PR_SPEC_ENABLE;
}

Result<void> collect_dispatch(HostPid tid, pb::ThreadCoreEntry& core) {
  Dispatch dispatch{};
  if (::ptrace(static_cast<__ptrace_request>(kGetDispatch), tid.value, sizeof dispatch, &dispatch) < 0) {
    return errno == EIO || errno == EINVAL || errno == ENOSYS
               ? Result<void>()  // this kernel cannot tell
               : sys_fail(fmt::format("ptrace(GET_SYSCALL_USER_DISPATCH_CONFIG, {})", tid));
  }
  if (dispatch.mode != PR_SYS_DISPATCH_OFF) {
    auto& out = *core.mutable_ferry_syscall_dispatch();
    out.set_selector(dispatch.selector);
    out.set_offset(dispatch.offset);
    out.set_length(dispatch.length);
  }
  return {};
}

}  // namespace

Answers ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch) {
  const tracee::Data name = batch.room(kNameSize);
  batch.must("prctl(PR_GET_NAME)", SYS_prctl, {PR_GET_NAME, name, 0, 0, 0});
  const tracee::Value slack = batch.must("prctl(PR_GET_TIMERSLACK)", SYS_prctl, {PR_GET_TIMERSLACK, 0, 0, 0, 0});
  const tracee::Data tsc = batch.room(sizeof(int));
  batch.must("prctl(PR_GET_TSC)", SYS_prctl, {PR_GET_TSC, tsc, 0, 0, 0});
  const tracee::Value mce = batch.may(SYS_prctl, {PR_MCE_KILL_GET, 0, 0, 0, 0});
  const tracee::Value flusher = batch.may(SYS_prctl, {kGetIoFlusher, 0, 0, 0, 0});  // needs CAP_SYS_RESOURCE
  std::array<tracee::Value, kSpeculations> speculation{};
  for (std::uint32_t which = 0; which < kSpeculations; ++which) {
    speculation[which] = batch.may(SYS_prctl, {PR_GET_SPECULATION_CTRL, which, 0, 0, 0});
  }
  return [=, &task, &thread](const tracee::Replies& replies) -> Result<void> {
    const auto bytes = replies.bytes(name);
    const std::string text(reinterpret_cast<const char*>(bytes.data()),
                           ::strnlen(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
    auto& core = *thread.core->mutable_thread_core();
    core.set_comm(text);
    if (thread.index == 0) {
      task.core->mutable_tc()->set_comm(text);
    }
    core.set_ferry_timerslack_ns(static_cast<std::uint64_t>(replies[slack]));
    // Seccomp's strict mode turns it off as well, and will do so again.
    if (const int mode = replies.object<int>(tsc);
        mode != PR_TSC_ENABLE && task.status.seccomp != SECCOMP_MODE_STRICT) {
      core.set_ferry_tsc(static_cast<std::uint32_t>(mode));
    }
    if (replies[mce] >= 0 && replies[mce] != PR_MCE_KILL_DEFAULT) {
      core.set_ferry_mce_kill(static_cast<std::uint32_t>(replies[mce]));
    }
    if (replies[flusher] > 0) {
      core.set_ferry_io_flusher(1);
    }
    for (std::uint32_t which = 0; which < kSpeculations; ++which) {
      const std::int64_t state = replies[speculation[which]];
      if (state > 0 && (state & PR_SPEC_PRCTL) != 0 && (state & ~std::int64_t{PR_SPEC_PRCTL}) != ordinary(which)) {
        auto& entry = *core.add_ferry_speculation();
        entry.set_which(which);
        entry.set_state(static_cast<std::uint32_t>(state & ~std::int64_t{PR_SPEC_PRCTL}));
      }
    }
    return {};
  };
}

void answer_like(const DumpTask& task, DumpThread& thread) {
  auto& core = *thread.core->mutable_thread_core();
  const auto& model = task.model_of(thread).core->thread_core();
  core.set_comm(thread.words->name.data(), ::strnlen(thread.words->name.data(), thread.words->name.size()));
  core.set_ferry_timerslack_ns(thread.words->timer_slack);
  if (model.has_ferry_tsc()) {
    core.set_ferry_tsc(model.ferry_tsc());
  }
  if (model.has_ferry_mce_kill()) {
    core.set_ferry_mce_kill(model.ferry_mce_kill());
  }
  if (model.has_ferry_io_flusher()) {
    core.set_ferry_io_flusher(model.ferry_io_flusher());
  }
  *core.mutable_ferry_speculation() = model.ferry_speculation();
}

Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext&) {
  FERRY_CHECK(collect_scheduling(thread));
  if (!task.asks(thread) && !task.model_of(thread).core->thread_core().has_ferry_syscall_dispatch()) {
    return {};
  }
  return collect_dispatch(thread.tid, *thread.core->mutable_thread_core());
}

Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext&, tracee::Batch& batch) {
  const auto& core = thread.core->thread_core();
  FERRY_CHECK(restore_scheduling(thread));
  const std::string& name = core.has_comm() || thread.index != 0 ? core.comm() : task.core->tc().comm();
  batch.must("prctl(PR_SET_NAME)", SYS_prctl, {PR_SET_NAME, batch.string(name), 0, 0, 0});
  if (core.ferry_timerslack_ns() != 0) {  // 0: a real-time thread, or a set of CRIU's
    batch.must("prctl(PR_SET_TIMERSLACK)", SYS_prctl, {PR_SET_TIMERSLACK, core.ferry_timerslack_ns(), 0, 0, 0});
  }
  if (core.has_ferry_mce_kill()) {
    batch.must("prctl(PR_MCE_KILL)", SYS_prctl, {PR_MCE_KILL, PR_MCE_KILL_SET, core.ferry_mce_kill(), 0, 0});
  }
  if (core.ferry_io_flusher() != 0) {
    batch.must("prctl(PR_SET_IO_FLUSHER)", SYS_prctl, {kSetIoFlusher, 1, 0, 0, 0});
  }
  for (const pb::FerrySpeculation& entry : core.ferry_speculation()) {
    batch.must("prctl(PR_SET_SPECULATION_CTRL)", SYS_prctl,
               {PR_SET_SPECULATION_CTRL, entry.which(), entry.state(), 0, 0});
  }
  if (core.has_ferry_tsc()) {
    batch.must("prctl(PR_SET_TSC)", SYS_prctl, {PR_SET_TSC, core.ferry_tsc(), 0, 0, 0});
  }
  if (const auto own = static_cast<std::uint32_t>(::personality(0xffffffff)); own != task.core->tc().personality()) {
    batch.must("personality", SYS_personality, {task.core->tc().personality()});
  }
  return {};
}

// From outside (ptrace(2), PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG), so that no call of ours is diverted.
Result<void> restore_dispatch(RestoreTask&, const RestoreThread& thread) {
  const auto& core = thread.core->thread_core();
  if (!core.has_ferry_syscall_dispatch()) {
    return {};
  }
  const auto& want = core.ferry_syscall_dispatch();
  Dispatch dispatch{PR_SYS_DISPATCH_ON, want.selector(), want.offset(), want.length()};
  if (::ptrace(static_cast<__ptrace_request>(kSetDispatch), thread.tid.value, sizeof dispatch, &dispatch) < 0) {
    return sys_fail(fmt::format("ptrace(SET_SYSCALL_USER_DISPATCH_CONFIG, task {})", thread.ns_tid));
  }
  return {};
}

}  // namespace ferry::state::limits
