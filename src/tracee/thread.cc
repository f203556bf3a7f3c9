#include "tracee/thread.h"

#include <elf.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace ferry::tracee {
namespace {

constexpr std::size_t kKernelSigsetSize = 8;
// Most stops come within microseconds.  To sleep for one costs ten times that, because a processor has to be
// woken twice; so we ask again for a while first, leaving the processor to the tracee if it needs ours.
constexpr std::chrono::microseconds kSpinTime{200};
// A thread that makes a thousand others wakes us a thousand times before it stops itself.  After some wakings for
// nothing we look at intervals: the processor is better left to those who work.
constexpr int kWakings = 4;
constexpr timespec kInterval{0, 100'000};

long request(int what, HostPid tid, std::uintptr_t address = 0, std::uintptr_t data = 0) {
  return ::ptrace(static_cast<__ptrace_request>(what), tid.value, reinterpret_cast<void*>(address),
                  reinterpret_cast<void*>(data));
}

}  // namespace

void block_sigchld() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, nullptr);
}

Thread::Thread(Thread&& other) noexcept
    : deferred_signals(std::move(other.deferred_signals)), tid_(std::exchange(other.tid_, HostPid(0))) {}

Thread& Thread::operator=(Thread&& other) noexcept {
  if (this != &other) {
    (void)detach();
    tid_ = std::exchange(other.tid_, HostPid(0));
    deferred_signals = std::move(other.deferred_signals);
  }
  return *this;
}

Thread::~Thread() { (void)detach(); }

Thread Thread::adopt(HostPid tid) { return Thread(tid); }

Result<Thread> Thread::seize(HostPid tid, unsigned long options) {
  block_sigchld();  // a wait would sleep past the stop otherwise; threads made from here on inherit it
  if (request(PTRACE_SEIZE, tid, 0, options) != 0) {
    return sys_fail(fmt::format("ptrace(SEIZE, {})", tid));
  }
  return Thread(tid);
}

Result<void> Thread::interrupt() {
  if (request(PTRACE_INTERRUPT, tid_) != 0) {
    return sys_fail(fmt::format("ptrace(INTERRUPT, {})", tid_));
  }
  return {};
}

namespace {

// Until a child of ours changes state, or the deadline.
void sleep_for_change(const Deadline& deadline) {
  sigset_t chld;
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  const auto ns =
      std::max<std::int64_t>(0, std::chrono::duration_cast<std::chrono::nanoseconds>(deadline.left()).count());
  const timespec timeout{ns / 1'000'000'000, ns % 1'000'000'000};
  (void)::sigtimedwait(&chld, nullptr, &timeout);
}

}  // namespace

Result<std::optional<Stop>> Thread::poll() {
  int status = 0;
  // By tid, never -1: a wait for anyone looks at every tracee, which is quadratic over thousands.
  const pid_t got = ::waitpid(tid_.value, &status, __WALL | WNOHANG);
  if (got < 0) {
    const int saved = errno;
    if (saved == ECHILD) {
      forget();
    }
    return sys_fail(saved, fmt::format("waitpid({})", tid_));
  }
  if (got != tid_.value) {
    return std::optional<Stop>();
  }
  if (WIFEXITED(status) || WIFSIGNALED(status)) {
    const HostPid dead = std::exchange(tid_, HostPid(0));
    return fail(Kind::gone, "task {} {} {}", dead, WIFEXITED(status) ? "ended with status" : "was killed by signal",
                WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
  }
  const int signal = WSTOPSIG(status);
  const int event = status >> 16;
  if (event == PTRACE_EVENT_STOP) {
    return std::optional(Stop{signal == SIGTRAP ? Stop::Why::interrupt : Stop::Why::group_stop, signal, event});
  }
  if (event != 0) {
    return std::optional(Stop{Stop::Why::event, signal, event});
  }
  if (signal == (SIGTRAP | 0x80)) {
    return std::optional(Stop{Stop::Why::syscall, SIGTRAP, 0});
  }
  return std::optional(Stop{Stop::Why::signal, signal, 0});
}

Result<Stop> Thread::wait(const Deadline& deadline) {
  const Deadline spinning(kSpinTime);
  for (int wakings = 0;;) {
    FERRY_TRY(const std::optional<Stop> stop, poll());
    if (stop.has_value()) {
      return *stop;
    }
    if (!spinning.passed()) {
      ::sched_yield();
      continue;
    }
    if (deadline.passed()) {
      return sys_fail(ETIMEDOUT, fmt::format("task {} did not stop", tid_));
    }
    if (wakings < kWakings) {
      sleep_for_change(deadline);
      ++wakings;
    } else {
      (void)::nanosleep(&kInterval, nullptr);
    }
  }
}

Result<void> await_end(const std::vector<Thread*>& threads, const Deadline& deadline) {
  const auto has_ended = [](Thread* thread) {
    if (thread->tid().value == 0) {
      return true;
    }
    const auto stop = thread->poll();
    if (stop.has_value()) {
      return false;  // alive, or a stop that was already on its way
    }
    thread->forget();
    return true;
  };
  std::vector<Thread*> left = threads;
  while (!left.empty()) {
    // To look at all of them whenever one has ended would be quadratic, so the last one stands for all for a while:
    // it was woken last.  Not for ever, because it may be the one that waits for the others to be reaped.
    const Deadline turn(std::chrono::microseconds(500) + std::chrono::microseconds(2) * left.size());
    for (const Deadline spinning(kSpinTime); !has_ended(left.back()) && !turn.passed();) {
      if (spinning.passed()) {
        (void)::nanosleep(&kInterval, nullptr);
      } else {
        ::sched_yield();
      }
    }
    std::erase_if(left, has_ended);
    if (!left.empty() && deadline.passed()) {
      return sys_fail(ETIMEDOUT, fmt::format("task {} was killed and did not end", left.front()->tid()));
    }
  }
  return {};
}

Result<void> Thread::set_options(unsigned long options) {
  if (request(PTRACE_SETOPTIONS, tid_, 0, options) != 0) {
    return sys_fail(fmt::format("ptrace(SETOPTIONS, {})", tid_));
  }
  return {};
}

Result<void> Thread::resume(int how, int signal) {
  if (request(how, tid_, 0, static_cast<std::uintptr_t>(signal)) != 0) {
    return sys_fail(fmt::format("ptrace({}, {})", how == PTRACE_CONT ? "CONT" : "SYSCALL", tid_));
  }
  return {};
}

Result<void> Thread::detach(int signal) {
  if (tid_.value == 0) {
    return {};
  }
  const HostPid tid = std::exchange(tid_, HostPid(0));
  const auto deferred = std::exchange(deferred_signals, {});
  const long done = request(PTRACE_DETACH, tid, 0, static_cast<std::uintptr_t>(signal));
  const int saved = errno;
  for (const int again : deferred) {
    ::tgkill(tid.value, tid.value, again);
  }
  if (done != 0) {
    tid_ = tid;
    return sys_fail(saved, fmt::format("ptrace(DETACH, {})", tid));
  }
  return {};
}

Result<Registers> Thread::registers() const {
  Registers regs{};
  if (request(PTRACE_GETREGS, tid_, 0, reinterpret_cast<std::uintptr_t>(&regs)) != 0) {
    return sys_fail(fmt::format("ptrace(GETREGS, {})", tid_));
  }
  return regs;
}

Result<void> Thread::set_registers(const Registers& regs) const {
  if (request(PTRACE_SETREGS, tid_, 0, reinterpret_cast<std::uintptr_t>(&regs)) != 0) {
    return sys_fail(fmt::format("ptrace(SETREGS, {})", tid_));
  }
  return {};
}

Result<std::vector<std::byte>> Thread::extended_state() const {
  std::byte state[16384];  // AMX makes it 11,008 bytes; the kernel cuts to what there is
  iovec io{state, sizeof state};
  if (request(PTRACE_GETREGSET, tid_, NT_X86_XSTATE, reinterpret_cast<std::uintptr_t>(&io)) != 0) {
    return sys_fail(fmt::format("ptrace(GETREGSET XSTATE, {})", tid_));
  }
  return std::vector<std::byte>(state, state + io.iov_len);
}

Result<void> Thread::set_extended_state(std::span<const std::byte> state) const {
  iovec io{const_cast<std::byte*>(state.data()), state.size()};
  if (request(PTRACE_SETREGSET, tid_, NT_X86_XSTATE, reinterpret_cast<std::uintptr_t>(&io)) != 0) {
    return sys_fail(fmt::format("ptrace(SETREGSET XSTATE, {})", tid_));
  }
  return {};
}

Result<std::uint64_t> Thread::signal_mask() const {
  std::uint64_t mask = 0;
  if (request(PTRACE_GETSIGMASK, tid_, kKernelSigsetSize, reinterpret_cast<std::uintptr_t>(&mask)) != 0) {
    return sys_fail(fmt::format("ptrace(GETSIGMASK, {})", tid_));
  }
  return mask;
}

Result<void> Thread::set_signal_mask(std::uint64_t mask) const {
  if (request(PTRACE_SETSIGMASK, tid_, kKernelSigsetSize, reinterpret_cast<std::uintptr_t>(&mask)) != 0) {
    return sys_fail(fmt::format("ptrace(SETSIGMASK, {})", tid_));
  }
  return {};
}

}  // namespace ferry::tracee
