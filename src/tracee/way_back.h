// Where a thread finds back by itself from a single system call, if its tracer dies meanwhile.
//
// A call is made with other registers and with every signal blocked.  A tracer that is killed then leaves the thread to
// go on from there: to take the result of our call for that of its own, and to keep the mask.  So the call is made by
// an instruction behind which a `ret` stands, with a stack on which the C library's return from a signal handler is
// next, and behind that a signal frame (sigframe.h) with all that the thread had.  Both pieces of code are in every C
// library and in Go's runtime: of x86-64 programs that catch signals each has the second (SA_RESTORER, sigaction(2)).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "sys/proc.h"
#include "tracee/thread.h"

namespace ferry::tracee {

struct WayBack {
  std::uint64_t call = 0;         // syscall; ret
  std::uint64_t from_signal = 0;  // mov $SYS_rt_sigreturn, %eax; syscall
};

// Known by the files that processes have mapped, each of which is searched once.
class WaysBack {
 public:
  // While the process runs: searches what it has mapped.  What cannot be read is passed over.
  void learn(HostPid pid);
  // While it is stopped.  Nothing where its files are not known, or the code is not there any more.
  [[nodiscard]] std::optional<WayBack> of(HostPid pid, const std::vector<sys::Mapping>& mappings) const;

 private:
  using File = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t>;  // device, inode, offset of the mapping
  std::map<File, WayBack> files_;                                        // relative to the mapping; 0: not in there
};

// The part of a stack that a way back takes up, which gets back what it had.  The red zone above it is left alone.
// State   all threads of the process are stopped
class StackFrame {
 public:
  StackFrame() = default;
  StackFrame(const StackFrame&) = delete;
  StackFrame& operator=(const StackFrame&) = delete;
  ~StackFrame() { give_back(); }
  // Below the stack pointer in `registers`, which with `mask` and `extended_state` is what the thread comes back to.
  // Errors: os, where that is no memory that the program could write; nothing has changed then.
  Result<void> place(HostPid pid, const WayBack& way, const Registers& registers, std::uint64_t mask,
                     std::span<const std::byte> extended_state);
  // For the call; 0: none is placed.
  [[nodiscard]] std::uint64_t stack_pointer() const { return stack_pointer_; }
  void give_back();

 private:
  HostPid pid_;
  std::uint64_t address_ = 0;
  std::uint64_t stack_pointer_ = 0;
  std::vector<std::byte> before_;
};

}  // namespace ferry::tracee
