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
#include "tracee/thread.h"

namespace ferry::state::cpu {

void save_registers(const tracee::Registers& regs, pb::UserX86RegsEntry& out);
tracee::Registers load_registers(const pb::UserX86RegsEntry& entry);

// `area`: what Thread::extended_state gave.  Components without a field of CRIU's are kept in ferry's own.
Result<void> save_extended(std::span<const std::byte> area, pb::UserX86FpregsEntry& out);
// An area for Thread::set_extended_state.  Errors: unsupported, by name, if this processor lacks a
// component that the thread uses.
Result<std::vector<std::byte>> load_extended(const pb::UserX86FpregsEntry& entry);

// Components that need ARCH_REQ_XCOMP_PERM before they can be set (arch_prctl(2)): AMX tile data.
bool needs_permission(const pb::UserX86FpregsEntry& entry);

}  // namespace ferry::state::cpu
