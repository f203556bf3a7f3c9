// A signal frame that gives a thread back what it had, without us.
//
// A batch ends with the thread sending itself a signal that a tracer sees and nobody else does.  If the
// tracer is dead by then, the thread goes on into rt_sigreturn(2) with this frame and is where it was.
// Source: arch/x86/include/uapi/asm/sigcontext.h and ucontext.h; arch/x86/kernel/fpu/signal.c.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tracee/thread.h"

namespace ferry::tracee {

struct SignalFrame {
  std::vector<std::byte> bytes;     // to stand at `address`
  std::uint64_t stack_pointer = 0;  // for rt_sigreturn; the 8 bytes below it are free for a return address
};
// `address` has to be a multiple of 64.  A system call that the stop interrupted is made again from its
// start, because its restart block does not survive rt_sigreturn.
SignalFrame make_signal_frame(std::uint64_t address, Registers registers, std::uint64_t mask,
                              std::span<const std::byte> extended_state);

}  // namespace ferry::tracee
