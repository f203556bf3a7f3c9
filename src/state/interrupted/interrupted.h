// System calls that a stop interrupts: nobody may notice.
//
// A stop takes a thread out of its call with a code that says how the kernel will go on when the thread
// is let go (include/linux/errno.h): -512 to -514 make the call again, -516 continues it from the
// kernel's restart block, which holds the time at which it ends and which only that thread has.
// A few calls return EINTR instead, because of the stop alone (signal(7), "Interruption of system calls and
// library functions by stop signals").
#pragma once

#include <cstdint>
#include <string_view>

#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::interrupted {

// Before anything else is done with a stopped thread.  Turns an EINTR of the stop's making back into the
// call, in thread.registers and in the thread itself; a handler that is about to run still gets its EINTR.
// A call that was stopped before stands there as restart_syscall(2): finds out which call it is.
Result<void> after_stop(DumpTask& task, DumpThread& thread);

// The first half of it, for a thread that is stopped for an instant and nothing is saved of.
Result<void> undo_eintr(tracee::Thread& thread);

// After the registers were put into the image: makes of them what CRIU would restore, and keeps what ferry
// needs to go on exactly (FerryRestart).
Result<void> save(DumpTask& task, DumpThread& thread);

// The registers to let a new thread go with, given those of the image.  A call with a restart block is
// made once and interrupted at once, so that the kernel fills the block of the new thread.
// The area has to be mapped, the memory filled, and no batch may follow in this thread that sleeps.
Result<tracee::Registers> prime(RestoreTask& task, RestoreThread& thread, const tracee::Registers& saved);

// --- the rules, apart from any process
// Whether the call can return EINTR because of a stop alone, with nothing done.
bool returns_eintr_from_stop(std::uint64_t call);
// The call behind restart_syscall(2): by the kernel function the thread sleeps in, and its first argument.
// 0: unknown.
std::uint32_t call_behind(std::string_view wchan, std::uint64_t first_argument);
// What CRIU would restore for registers that a stop left.
void as_criu_would(tracee::Registers& registers);

}  // namespace ferry::state::interrupted
