// Which pages of a process hold something of its own.
// Source: Documentation/admin-guide/mm/pagemap.rst; PAGEMAP_SCAN is there since Linux 6.7.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::sys {

struct PageRange {
  std::uint64_t start = 0, end = 0;  // bytes, page-aligned
  [[nodiscard]] std::uint64_t pages() const { return (end - start) / 4096; }
};

// Anonymous pages (also those that private file mappings have copied on write) that are present or
// swapped out and are not the zero page, within [start, end).  Appends; ranges are sorted and merged.
// `pagemap`: an open /proc/PID/pagemap.  Without PAGEMAP_SCAN the entries are read one by one, and
// zero pages are not told apart.
Result<void> own_pages(int pagemap, std::uint64_t start, std::uint64_t end, std::vector<PageRange>& out);

}  // namespace ferry::sys
