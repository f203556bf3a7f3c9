// Programs of BPF that are written by hand: their instructions, and how they get into the kernel.
// Source: bpf(2), Documentation/bpf/standardization/instruction-set.rst.
#pragma once

#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/unique_fd.h"

union bpf_attr;
struct bpf_insn;

namespace ferry::sys {

// The raw call; -1 and errno.
long bpf(int command, bpf_attr& attributes);

bpf_insn instruction(std::uint8_t code, std::uint8_t to, std::uint8_t from, std::int16_t offset, std::int32_t value);

// `attributes`: what kind of program it is; code, licence and name are filled in.
// Errors: unsupported or denied, where this kernel does not do that or not for us, with the end of what its verifier
// says.
Result<UniqueFd> load_program(std::span<const bpf_insn> code, bpf_attr attributes);

}  // namespace ferry::sys
