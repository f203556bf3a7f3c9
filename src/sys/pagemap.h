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

// What a mapping is of.  Asking whether a page is a file's costs the kernel a look at that page (about 40 ns, a miss of
// the cache), which for a gigabyte of anonymous memory would be most of the walk.
enum class Backing : bool { nothing, file };

// Anonymous pages (also those that private file mappings have copied on write) that are present or
// swapped out and are not the zero page, within [start, end).  Appends; ranges are sorted and merged.
// `pagemap`: an open /proc/PID/pagemap.  Without PAGEMAP_SCAN the entries are read one by one, and
// zero pages are not told apart.  Guard pages (madvise(2), MADV_GUARD_INSTALL), which nobody can read, go into
// `guards` since Linux 6.15; before, they cannot be told from pages that are swapped out.
Result<void> own_pages(int pagemap, std::uint64_t start, std::uint64_t end, Backing backing,
                       std::vector<PageRange>& out, std::vector<PageRange>* guards = nullptr);

// The same pages, told apart by whether they were written since they were last protected (userfaultfd.h).
struct WrittenPages {
  std::vector<PageRange> written, unchanged;
  // Of private file mappings only, and not present: swapped out, or a mere mark of the protection that the
  // kernel left behind when the page was given up (MADV_DONTNEED, truncation).  A look at the content tells.
  std::vector<PageRange> absent;
  std::vector<PageRange> guards;  // as in own_pages
};
enum class Protect : bool { no, yes };  // what was found written, so that the next scan finds what came after

// Appends.
// Errors: unsupported (some mapping in the range is not watched: the written marks of the whole range are
// void then, and some may have been taken off).
Result<void> scan_written(int pagemap, std::uint64_t start, std::uint64_t end, Backing backing, Protect protect,
                          WrittenPages& out);

// Whether the mapping at `address` is watched for asynchronous write protection.
Result<bool> is_watched(int pagemap, std::uint64_t address);

}  // namespace ferry::sys
