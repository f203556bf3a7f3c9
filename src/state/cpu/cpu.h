// The processor state of one x86-64 thread: general registers and the extended (XSAVE) state.
//
// The layout of the XSAVE area is this processor's own (CPUID leaf 0xD: Intel SDM volume 1, chapter 13);
// images hold the components apart, so that a set restores where the offsets differ.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/error.h"
#include "image/proto/core_x86.pb.h"
#include "state/dump.h"
#include "state/restore.h"
#include "tracee/thread.h"

namespace ferry::state::cpu {

void save_registers(const tracee::Registers& regs, pb::UserX86RegsEntry& out);
tracee::Registers load_registers(const pb::UserX86RegsEntry& entry);

// `area`: what Thread::extended_state gave.  Components without a field of CRIU's are kept in ferry's own.
// Errors: unsupported, by name; AMX tiles with data among others, which a new thread has no room for until it
// has executed an instruction of AMX.
Result<void> save_extended(std::span<const std::byte> area, pb::UserX86FpregsEntry& out);
// An area for Thread::set_extended_state.  Errors: unsupported, by name, if this processor lacks a
// component that the thread uses.
Result<std::vector<std::byte>> load_extended(const pb::UserX86FpregsEntry& entry);

// Permission to use AMX (arch_prctl(2), ARCH_GET_XCOMP_PERM; Documentation/arch/x86/xstate.rst), which a process
// asks for once.  Kept with the leader's state as a component without content.
Answers ask(DumpTask& task, tracee::Batch& batch);
Result<void> restore(RestoreTask& task, tracee::Batch& batch);

}  // namespace ferry::state::cpu
