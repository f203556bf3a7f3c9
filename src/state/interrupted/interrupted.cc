#include "state/interrupted/interrupted.h"

#include <sched.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>

#include "base/log.h"
#include "sys/file.h"
#include "sys/memory.h"
#include "tracee/await_stop.h"

namespace ferry::state::interrupted {
namespace {

// include/linux/errno.h: never seen by user space
constexpr std::int64_t kRestartSys = -512, kRestartNoIntr = -513, kRestartNoHand = -514, kRestartBlock = -516;
constexpr std::uint64_t kNoCall = ~0ULL;
constexpr std::size_t kPage = 4096;
constexpr std::uint64_t kEverything = ~0ULL;
constexpr std::chrono::seconds kPatience{5};
constexpr std::uint64_t kSyscallSize = 2;  // the instruction

std::int64_t result_of(const tracee::Registers& regs) { return static_cast<std::int64_t>(regs.rax); }
bool in_call(const tracee::Registers& regs) { return regs.orig_rax != kNoCall; }

// Of a call: its entry, or its exit.
Result<void> go_on_to_border(tracee::Thread& thread) {
  FERRY_CHECK(thread.resume(PTRACE_SYSCALL));
  return tracee::await_stop(thread, tracee::Stop::Why::syscall, PTRACE_SYSCALL);
}

// Where the thread sleeps, once it does; empty if it did not go to sleep.
Result<std::string> sleeping_place(HostPid pid, HostPid tid) {
  const tracee::Deadline deadline(kPatience);
  const std::string task = fmt::format("/proc/{}/task/{}", pid, tid);
  while (!deadline.passed()) {
    // Unlike the state, this file waits until a thread that is about to sleep has left its processor
    // (task_current_syscall in lib/syscall.c); before, the place would be one that only leads there.
    FERRY_TRY(const auto call, sys::read_file(task + "/syscall"));
    if (call.rfind("running", 0) == 0) {
      ::sched_yield();
      continue;
    }
    FERRY_TRY(const auto text, sys::read_file(task + "/stat"));
    FERRY_TRY(const auto stat, sys::parse_stat(text));
    if (stat.state == 't' || stat.state == 'T') {
      return std::string();  // the call ended and the thread stands at a stop
    }
    return sys::read_file(task + "/wchan");
  }
  return sys_fail(ETIMEDOUT, fmt::format("task {} neither slept nor stopped", tid));
}

// Lets the thread into its restart_syscall(2) and takes it out again, never as far as user mode: its time may be over
// meanwhile.
Result<std::uint32_t> find_call(DumpTask& task, DumpThread& seen) {
  tracee::Thread& thread = task.thread(seen);
  FERRY_CHECK(thread.set_options(PTRACE_O_TRACESYSGOOD));
  FERRY_CHECK(go_on_to_border(thread));
  FERRY_CHECK(thread.resume(PTRACE_SYSCALL));
  FERRY_TRY(const std::string place, sleeping_place(task.pid, seen.tid));
  if (!place.empty()) {
    FERRY_CHECK(thread.interrupt());
  }
  FERRY_CHECK(tracee::await_stop(thread, tracee::Stop::Why::syscall, PTRACE_SYSCALL));
  // The stop at the exit has taken our interruption away (ptrace_stop in kernel/signal.c), so once more.
  FERRY_CHECK(thread.interrupt());
  FERRY_CHECK(thread.resume(PTRACE_CONT));
  FERRY_CHECK(tracee::await_stop(thread, tracee::Stop::Why::interrupt, PTRACE_CONT));
  FERRY_TRY(seen.registers, thread.registers());
  const std::uint32_t call = call_behind(place, seen.registers.rdi);
  log::debug("task {} goes on with call {}: it sleeps in {}, result {}", seen.tid, call, place,
             result_of(seen.registers));
  return call;
}

// Address of the remainder, which the kernel wrote when the stop came; 0 if the call has none.
std::uint64_t remainder_of(std::uint32_t call, const tracee::Registers& regs) {
  switch (call) {
    case SYS_nanosleep:
      return regs.rsi;
    case SYS_clock_nanosleep:
      return regs.r10;
    default:
      return 0;
  }
}

std::uint64_t syscall_in_area(const tracee::Process& process) {
  const auto code = tracee::loop_code();
  const std::array instruction = {std::byte{0x0f}, std::byte{0x05}};
  const auto found = std::search(code.begin(), code.end(), instruction.begin(), instruction.end());
  return process.area().base + static_cast<std::uint64_t>(found - code.begin());
}

// Makes the call and interrupts it before it can sleep; its result.
Result<std::int64_t> interrupted_call(tracee::Thread& thread, tracee::Registers regs, std::uint64_t at,
                                      std::uint32_t number) {
  regs.rip = at;
  regs.rax = number;
  regs.orig_rax = kNoCall;
  FERRY_TRY(const std::uint64_t mask, thread.signal_mask());
  FERRY_CHECK(thread.set_signal_mask(kEverything));
  FERRY_CHECK(thread.set_registers(regs));
  FERRY_CHECK(go_on_to_border(thread));
  FERRY_CHECK(thread.interrupt());
  // Without a stop at the exit: any trap clears one that is pending (ptrace_stop in kernel/signal.c), and
  // the thread would go on to user mode with the raw result.
  FERRY_CHECK(thread.resume(PTRACE_CONT));
  FERRY_CHECK(tracee::await_stop(thread, tracee::Stop::Why::interrupt, PTRACE_CONT));
  FERRY_TRY(const tracee::Registers after, thread.registers());
  FERRY_CHECK(thread.set_signal_mask(mask));
  return result_of(after);
}

}  // namespace

bool returns_eintr_from_stop(std::uint64_t call) {
  static constexpr std::array<std::uint64_t, 21> kCalls = {
      SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_rt_sigtimedwait, SYS_semtimedop, SYS_semop,
      SYS_io_getevents, SYS_io_pgetevents, SYS_io_uring_enter,
      // sockets with SO_RCVTIMEO or SO_SNDTIMEO, before anything was transferred (socket(7))
      SYS_read, SYS_readv, SYS_recvfrom, SYS_recvmsg, SYS_recvmmsg, SYS_accept, SYS_accept4, SYS_write, SYS_writev,
      SYS_sendto, SYS_sendmsg, SYS_sendmmsg};
  return std::find(kCalls.begin(), kCalls.end(), call) != kCalls.end();
}

std::uint32_t call_behind(std::string_view wchan, std::uint64_t first_argument) {
  const auto sleeps_in = [&](std::string_view part) { return wchan.find(part) != std::string_view::npos; };
  // The kernel names no function of its scheduler here, and hrtimer_nanosleep_restart counts as one
  // (kernel/time/hrtimer.c, __sched): what is left then is the way into the call.
  if (sleeps_in("nanosleep") || sleeps_in("nsleep") || sleeps_in("do_syscall_64") || sleeps_in("restart_syscall")) {
    // The first argument is the request's address, or a clock: a small number or a negative one.
    const auto clock = static_cast<std::int32_t>(first_argument);
    const bool is_clock = first_argument < kPage || (clock < 0 && first_argument >> 32 == 0) ||
                          static_cast<std::int64_t>(first_argument) < 0;
    return is_clock ? SYS_clock_nanosleep : SYS_nanosleep;
  }
  if (sleeps_in("futex")) {
    return SYS_futex;
  }
  if (sleeps_in("poll")) {
    return SYS_poll;
  }
  return 0;
}

void as_criu_would(tracee::Registers& regs) {
  if (!in_call(regs)) {
    return;
  }
  switch (result_of(regs)) {
    case kRestartSys:
    case kRestartNoIntr:
    case kRestartNoHand:
      regs.rax = regs.orig_rax;
      regs.rip -= kSyscallSize;
      break;
    case kRestartBlock:
      regs.rax = static_cast<std::uint64_t>(-EINTR);
      break;
    default:
      break;
  }
}

Result<void> undo_eintr(tracee::Thread& thread) {
  FERRY_TRY(auto regs, thread.registers());
  if (!in_call(regs) || result_of(regs) != -EINTR || !returns_eintr_from_stop(regs.orig_rax)) {
    return {};
  }
  regs.rax = static_cast<std::uint64_t>(kRestartNoHand);
  return thread.set_registers(regs);
}

Result<void> after_stop(DumpTask& task, DumpThread& thread) {
  tracee::Registers& regs = thread.registers;
  if (!in_call(regs)) {
    return {};
  }
  if (result_of(regs) == -EINTR && returns_eintr_from_stop(regs.orig_rax)) {
    // "Again, unless a handler runs": what these calls would return if they knew restarting.
    regs.rax = static_cast<std::uint64_t>(kRestartNoHand);
    return task.thread(thread).set_registers(regs);
  }
  // A process in job control's stop is not to run, not even as far as this.
  if (result_of(regs) == kRestartBlock && regs.orig_rax == SYS_restart_syscall && !task.job_stopped) {
    FERRY_TRY(const std::uint32_t call,
              find_call(task, thread).during("finding out which call task {} goes on with", thread.tid));
    if (call != 0 && result_of(regs) == kRestartBlock) {
      thread.core->mutable_thread_core()->mutable_ferry_restart()->set_call(call);
    }
  }
  return {};
}

Result<void> save(DumpTask& task, DumpThread& thread) {
  const tracee::Registers& regs = thread.registers;
  auto& core = *thread.core->mutable_thread_core();
  tracee::Registers criu = regs;
  as_criu_would(criu);
  if (criu.rax == regs.rax) {
    core.clear_ferry_restart();
    return {};
  }
  auto& out = *core.mutable_ferry_restart();
  out.set_ax(result_of(regs));
  out.set_orig_ax(regs.orig_rax);
  out.set_ip(regs.rip);
  if (result_of(regs) == kRestartBlock) {
    if (!out.has_call() && regs.orig_rax != SYS_restart_syscall) {
      out.set_call(static_cast<std::uint32_t>(regs.orig_rax));
    }
    if (const std::uint64_t remainder = remainder_of(out.call(), regs); remainder != 0) {
      FERRY_TRY(const auto left, sys::read_object<timespec>(task.pid, remainder, task.process.memory())
                                     .during("reading how long task {} has still to sleep", thread.tid));
      out.set_remaining_ns(left.tv_sec * 1'000'000'000LL + left.tv_nsec);
    }
  }
  auto& gpregs = *thread.core->mutable_thread_info()->mutable_gpregs();
  gpregs.set_ax(criu.rax);
  gpregs.set_ip(criu.rip);
  return {};
}

Result<tracee::Registers> prime(RestoreTask& task, RestoreThread& thread, const tracee::Registers& saved) {
  const auto& core = thread.core->thread_core();
  // What CRIU would restore is complete: the kernel has nothing to add to it.
  tracee::Registers as_saved = saved;
  as_saved.orig_rax = kNoCall;
  if (!core.has_ferry_restart()) {
    return as_saved;
  }
  const pb::FerryRestart& restart = core.ferry_restart();
  tracee::Registers regs = saved;
  regs.rax = static_cast<std::uint64_t>(restart.ax());
  regs.orig_rax = restart.orig_ax();
  regs.rip = restart.ip();
  if (restart.ax() != kRestartBlock) {
    return regs;  // the kernel makes the call again from its start
  }
  tracee::Registers call = regs;
  const std::uint64_t time_at = task.process.area().base + kPage;
  if (restart.has_remaining_ns()) {
    const timespec left{restart.remaining_ns() / 1'000'000'000, restart.remaining_ns() % 1'000'000'000};
    FERRY_CHECK(sys::write_memory(task.pid, time_at, std::as_bytes(std::span(&left, 1)), task.process.memory()));
  }
  switch (restart.call()) {
    case SYS_nanosleep:
      call.rdi = restart.has_remaining_ns() ? time_at : call.rdi;
      break;
    case SYS_clock_nanosleep:
      call.rdx = restart.has_remaining_ns() ? time_at : call.rdx;
      break;
    case SYS_poll:
    case SYS_futex:
      break;  // how much of the time had passed is in no file; absolute times are right as they are
    default:
      return as_saved;  // EINTR, as CRIU would have it
  }
  tracee::Thread& traced = task.process.threads().at(thread.index);
  FERRY_TRY(const std::int64_t result,
            interrupted_call(traced, call, syscall_in_area(task.process), restart.call())
                .during("continuing system call {} of task {}", restart.call(), thread.ns_tid));
  if (result != kRestartBlock) {
    regs.rax = static_cast<std::uint64_t>(result);  // it ended, for a reason of its own
    regs.orig_rax = kNoCall;
  }
  return regs;
}

}  // namespace ferry::state::interrupted
