// Memory of a stopped process, straight to where it is to be.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "state/dump.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {

// process_vm_readv(2) is the faster way, but pins the pages, and for that the kernel gives a process a copy of its own
// of each page that it shares with one it was forked from (mm/gup.c, gup_must_unshare(), Linux 5.19): the tree would
// need its shared memory many times.  Reading /proc/PID/mem leaves them as they are.
enum class Reading : std::uint8_t { fast, sharing };
Result<void> read_sharing(int memory, std::uint64_t start, std::span<std::byte> into);
// As much as there is of the ranges, one behind the other, until the first page that cannot be read: its size in bytes.
std::uint64_t read_sharing(int memory, std::span<const sys::PageRange> ranges, std::span<std::byte> into);

// Copies the ranges one behind the other; `room` has exactly their size.  Large ones on two threads.
Result<void> read_pages(DumpTask& task, std::vector<sys::PageRange> ranges, Reading reading, std::span<std::byte> room);

}  // namespace ferry::state::memory
