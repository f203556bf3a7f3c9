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
constexpr __u64 kIsWatched = 1 << 0;  // PAGE_IS_WPALLOWED
constexpr __u64 kIsWritten = 1 << 1;
constexpr __u64 kIsFile = 1 << 2;
constexpr __u64 kIsPresent = 1 << 3;
constexpr __u64 kIsSwapped = 1 << 4;
constexpr __u64 kIsZero = 1 << 5;
constexpr __u64 kIsGuard = 1 << 8;

constexpr __u64 kProtectMatching = 1 << 0;
constexpr __u64 kInsistOnAsync = 1 << 1;

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

// One whole walk over [start, end); `arg` says what is looked for.
template <class Use>
Result<void> walk_once(int pagemap, std::uint64_t start, std::uint64_t end, PmScanArg arg, Use use) {
  std::array<PageRegion, 512> regions;
  arg.size = sizeof arg;
  arg.end = end;
  arg.vec = reinterpret_cast<__u64>(regions.data());
  arg.vec_len = regions.size();
  for (std::uint64_t at = start; at < end; at = arg.walk_end) {
    arg.start = at;
    const int n = ::ioctl(pagemap, kPagemapScan, &arg);
    if (n < 0) {
      return sys_fail(fmt::format("ioctl(PAGEMAP_SCAN, {:#x}-{:#x})", at, end));
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
      use(regions[i]);
    }
    if (arg.walk_end <= at) {
      return fail(Kind::os, "PAGEMAP_SCAN does not get past {:#x}", at);
    }
  }
  return {};
}

// The same on kernels that do not know of guard pages, whose answer to the question is EINVAL, at once.
template <class Use>
Result<void> walk(int pagemap, std::uint64_t start, std::uint64_t end, PmScanArg arg, Use use) {
  auto walked = walk_once(pagemap, start, end, arg, use);
  if (!walked.has_value() && walked.error().os_errno == EINVAL && (arg.return_mask & kIsGuard) != 0) {
    arg.return_mask &= ~kIsGuard;
    return walk_once(pagemap, start, end, arg, use);
  }
  return walked;
}

// Pages with content of the process's own, and guard pages, which count as swapped out.
PmScanArg own_content(Backing backing) {
  PmScanArg arg{};
  arg.category_mask = kIsZero | (backing == Backing::file ? kIsFile : 0);
  arg.category_inverted = arg.category_mask;
  arg.category_anyof_mask = kIsPresent | kIsSwapped;
  arg.return_mask = kIsPresent | kIsGuard;
  return arg;
}

}  // namespace

Result<void> own_pages(int pagemap, std::uint64_t start, std::uint64_t end, Backing backing,
                       std::vector<PageRange>& out, std::vector<PageRange>* guards) {
  auto walked = walk(pagemap, start, end, own_content(backing), [&](const PageRegion& region) {
    if ((region.categories & kIsGuard) == 0) {
      append(out, region.start, region.end);
    } else if (guards != nullptr) {
      append(*guards, region.start, region.end);
    }
  });
  if (!walked.has_value() && walked.error().os_errno == ENOTTY) {
    return own_pages_by_entry(pagemap, start, end, out);
  }
  return walked;
}

Result<void> scan_written(int pagemap, std::uint64_t start, std::uint64_t end, Backing backing, Protect protect,
                          WrittenPages& out) {
  PmScanArg arg = own_content(backing);
  // CHECK_WPASYNC: without it mappings that are not watched would be passed over in silence.
  arg.flags = kInsistOnAsync | (protect == Protect::yes ? kProtectMatching : 0);
  arg.return_mask = kIsWritten | kIsPresent | kIsGuard;
  auto walked = walk(pagemap, start, end, arg, [&](const PageRegion& region) {
    if ((region.categories & kIsGuard) != 0) {
      append(out.guards, region.start, region.end);
    } else if (backing == Backing::file && (region.categories & kIsPresent) == 0) {
      append(out.absent, region.start, region.end);
    } else {
      append((region.categories & kIsWritten) != 0 ? out.written : out.unchanged, region.start, region.end);
    }
  });
  if (!walked.has_value() && (walked.error().os_errno == EPERM || walked.error().os_errno == ENOTTY)) {
    walked.error().kind = Kind::unsupported;
  }
  return walked;
}

Result<bool> is_watched(int pagemap, std::uint64_t address) {
  PmScanArg arg{};
  arg.flags = kInsistOnAsync;
  arg.category_mask = arg.return_mask = kIsWatched;
  const auto walked = walk(pagemap, address, address + kPage, arg, [](const PageRegion&) {});
  if (!walked.has_value()) {
    if (walked.error().os_errno == EPERM || walked.error().os_errno == ENOTTY) {
      return false;
    }
    return tl::unexpected<Error>(walked.error());
  }
  return true;
}

}  // namespace ferry::sys
