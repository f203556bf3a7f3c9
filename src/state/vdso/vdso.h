// The kernel's code in every process (vdso(7)), and what becomes of it under another kernel.
//
// The vDSO of one kernel cannot work under another, whose data (vvar) lies elsewhere and looks different.  The program
// keeps the addresses of its functions, and calls them for ever.  So a vDSO of another kernel becomes ordinary memory
// at the place where it was, with its functions changed: each leads to the one of its name in the vDSO of this kernel,
// which gets a place of its own, or makes the system call.  A later checkpoint finds memory like any other, and this
// kernel's vDSO at the place it has got; on a third kernel the same happens once more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "state/dump.h"

namespace ferry::state::vdso {

// --- checkpoint

// A thread that is stopped inside the vDSO goes on until it has left it, as long as nobody knows which kernel it goes
// on under; thread.registers are renewed.  One that would notice single steps, by a SIGTRAP that it blocks or ignores,
// stays.
Result<void> leave(DumpTask& task, DumpThread& thread);

// --- restore, and what both sides need: on the content of a vDSO, an ELF image as the kernel maps it

// The one of this kernel, as this process has it.  Empty if the kernel gives none.
std::span<const std::byte> own();

// Which build it is: its build-id, or all of the content of one that has none.  With the same build everything lies at
// the same place, though the kernel may have fitted instructions to another processor (alternatives).
std::string build_of(std::span<const std::byte> content);

struct Function {
  std::string name;
  std::uint64_t offset = 0, size = 0;  // in the content, bytes
};
// What it offers, one for each name.  Errors: corrupt.  Source: elf(5), DT_HASH and DT_GNU_HASH.
Result<std::vector<Function>> functions(std::span<const std::byte> content);

// Makes the functions of `content` lead to those of `ours`, which lies at the address `at` of the process; an empty one
// has none.  A function that neither `ours` nor a system call stands for answers ENOSYS, as a kernel without it.
// Errors: corrupt; unsupported (a function without room for the way out).
Result<void> lead_out(std::span<std::byte> content, std::span<const std::byte> ours, std::uint64_t at);

}  // namespace ferry::state::vdso
