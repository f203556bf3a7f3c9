// One thread of another process that we trace.  Source: ptrace(2).
//
// All requests have to come from the OS thread that seized it.  A Thread lets go of its thread when
// it is destroyed, and the kernel does the same if this process dies, so what was stopped runs on.
// SIGCHLD is blocked from the first seize on, because waits sleep on it; a program with several threads
// has to block it before it makes them (block_sigchld).
#pragma once

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "tracee/deadline.h"

namespace ferry::tracee {

using Registers = user_regs_struct;

// Why a traced thread stopped: a wait status, named.
struct Stop {
  enum class Why {
    interrupt,   // PTRACE_INTERRUPT, or a new thread's first stop
    group_stop,  // the process is stopped by a job control signal
    signal,      // about to be delivered: `signal`
    syscall,     // entry or exit of a system call, PTRACE_SYSCALL
    event,       // another PTRACE_EVENT_*: `event`
  };
  Why why;
  int signal = 0;
  int event = 0;
};

void block_sigchld();

class Thread {
 public:
  Thread() = default;
  Thread(Thread&& other) noexcept;
  Thread& operator=(Thread&& other) noexcept;
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread();

  // PTRACE_SEIZE: traced from now on, still running.  `options`: PTRACE_O_*.
  static Result<Thread> seize(HostPid tid, unsigned long options = 0);
  // A thread that the kernel attached to us (CLONE_PTRACE).
  static Thread adopt(HostPid tid);

  [[nodiscard]] HostPid tid() const { return tid_; }
  Result<void> interrupt();
  // Waits for the next stop.  Errors: gone if the thread ended; os (ETIMEDOUT) at the deadline.
  Result<Stop> wait(const Deadline& deadline);
  // The next stop if there is one by now; does not wait.  Errors: gone.
  Result<std::optional<Stop>> poll();
  Result<void> set_options(unsigned long options);
  Result<void> resume(int request, int signal = 0);  // PTRACE_CONT, PTRACE_SYSCALL
  // Lets go; `signal` is delivered.  The destructor does the same without one.
  Result<void> detach(int signal = 0);
  // Forgets the thread without letting go: it is dead, or about to be.
  void forget() { tid_ = HostPid(0); }

  Result<Registers> registers() const;
  Result<void> set_registers(const Registers& regs) const;
  // The extended state as XSAVE lays it out (NT_X86_XSTATE); as long as this CPU makes it.
  Result<std::vector<std::byte>> extended_state() const;
  Result<void> set_extended_state(std::span<const std::byte> state) const;
  Result<std::uint64_t> signal_mask() const;
  Result<void> set_signal_mask(std::uint64_t mask) const;

  // A signal that arrived while we made the thread do something: to be sent again after letting go.
  std::vector<int> deferred_signals;

 private:
  explicit Thread(HostPid tid) : tid_(tid) {}
  HostPid tid_;
};

// Waits until every one of the threads, which are being killed, has ended, and reaps them in whatever
// order that happens: the init of a pid namespace ends only after all others were reaped, its own other
// threads included (zap_pid_ns_processes in kernel/pid_namespace.c).
Result<void> await_end(const std::vector<Thread*>& threads, const Deadline& deadline);

}  // namespace ferry::tracee
