#include "sys/pagemap.h"

#include <linux/types.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace ferry::sys {
namespace {

// linux/fs.h of 6.7; older headers lack it.
struct PmScanArg {
  __u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
  __u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(PmScanArg) == 96);
struct PageRegion {
  __u64 start, end, categories;
};
constexpr unsigned long kPagemapScan = _IOWR('f', 16, PmScanArg);
constexpr __u64 kIsFile = 1 << 2;
constexpr __u64 kIsPresent = 1 << 3;
constexpr __u64 kIsSwapped = 1 << 4;
constexpr __u64 kIsZero = 1 << 5;

constexpr std::uint64_t kPage = 4096;

void append(std::vector<PageRange>& out, std::uint64_t start, std::uint64_t end) {
  if (!out.empty() && out.back().end == start) {
    out.back().end = end;
  } else {
    out.push_back({start, end});
  }
}

Result<void> own_pages_by_entry(int pagemap, std::uint64_t start, std::uint64_t end, std::vector<PageRange>& out) {
  std::vector<std::uint64_t> entries(4096);
  for (std::uint64_t at = start; at < end;) {
    const std::size_t want = std::min<std::size_t>(entries.size(), static_cast<std::size_t>((end - at) / kPage));
    const ssize_t n = ::pread(pagemap, entries.data(), want * sizeof(std::uint64_t),
                              static_cast<off_t>(at / kPage * sizeof(std::uint64_t)));
    if (n <= 0) {
      return n == 0 ? fail(Kind::gone, "pagemap ends at {:#x}", at) : Result<void>(sys_fail("pread(pagemap)"));
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(n) / sizeof(std::uint64_t); ++i, at += kPage) {
      const bool present = (entries[i] >> 63 & 1) != 0 || (entries[i] >> 62 & 1) != 0;
      const bool file = (entries[i] >> 61 & 1) != 0;
      if (present && !file) {
        append(out, at, at + kPage);
      }
    }
  }
  return {};
}

}  // namespace

Result<void> own_pages(int pagemap, std::uint64_t start, std::uint64_t end, std::vector<PageRange>& out) {
  std::array<PageRegion, 512> regions;
  PmScanArg arg{};
  arg.size = sizeof arg;
  arg.end = end;
  arg.vec = reinterpret_cast<__u64>(regions.data());
  arg.vec_len = regions.size();
  arg.category_inverted = kIsFile | kIsZero;
  arg.category_mask = kIsFile | kIsZero;
  arg.category_anyof_mask = kIsPresent | kIsSwapped;
  arg.return_mask = kIsPresent;
  for (std::uint64_t at = start; at < end; at = arg.walk_end) {
    arg.start = at;
    const int n = ::ioctl(pagemap, kPagemapScan, &arg);
    if (n < 0) {
      if (errno == ENOTTY && at == start) {
        return own_pages_by_entry(pagemap, start, end, out);
      }
      return sys_fail(fmt::format("ioctl(PAGEMAP_SCAN, {:#x}-{:#x})", at, end));
    }
    for (int i = 0; i < n; ++i) {
      append(out, regions[static_cast<std::size_t>(i)].start, regions[static_cast<std::size_t>(i)].end);
    }
    if (arg.walk_end <= at) {
      return fail(Kind::os, "PAGEMAP_SCAN does not get past {:#x}", at);
    }
  }
  return {};
}

}  // namespace ferry::sys
