// Which pages of a process belong to a checkpoint.  The one rule, for everybody who saves, sends or tracks.
#pragma once

#include <cstdint>
#include <vector>

#include "image/proto/mm.pb.h"
#include "sys/pagemap.h"
#include "sys/proc.h"

namespace ferry::state::memory {

enum class Kept : std::uint8_t {
  nothing,     // the kernel's data pages, and shared memory: that is kept as a file (memfd, ipc, files)
  own_pages,   // private memory: the pages with content of its own
  everything,  // the vDSO, so that another kernel's can be told apart on restore
};
Kept kept(const sys::Mapping& mapping);
Kept kept(const pb::VmaEntry& vma);
sys::Backing backing(const sys::Mapping& mapping);
sys::Backing backing(const pb::VmaEntry& vma);

// Appends the pages of [start, end) that belong to a checkpoint, sorted; guard pages, which have no content, to
// `guards`.
Result<void> add_kept(Kept what, sys::Backing backing, int pagemap, std::uint64_t start, std::uint64_t end,
                      std::vector<sys::PageRange>& out, std::vector<sys::PageRange>* guards = nullptr);

// Adds guard pages to what is kept of the process: CRIU has them as ranges behind all mappings.
void add_guards(const std::vector<sys::PageRange>& guards, pb::MmEntry& mm);

// The parts of `a` that `b` covers, and those that it does not.  Both sorted.
std::vector<sys::PageRange> common(const std::vector<sys::PageRange>& a, const std::vector<sys::PageRange>& b);
std::vector<sys::PageRange> without(const std::vector<sys::PageRange>& a, const std::vector<sys::PageRange>& b);
// Sorts and merges.
void tidy(std::vector<sys::PageRange>& ranges);
std::uint64_t count_pages(const std::vector<sys::PageRange>& ranges);

}  // namespace ferry::state::memory
