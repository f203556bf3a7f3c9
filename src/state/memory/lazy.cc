#include "state/memory/lazy.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "state/memory/memory.h"
#include "sys/missing_pages.h"

namespace ferry::state::memory {
namespace {

image::Extent part_of(const image::Extent& whole, std::uint64_t start, std::uint64_t end) {
  return {start, (end - start) / image::kPageSize, whole.fd, whole.fd < 0 ? 0 : whole.offset + (start - whole.vaddr)};
}

}  // namespace

bool can_be_lazy(const pb::VmaEntry& vma) {
  constexpr std::uint32_t kKind = kAnonPrivate | kVdso | kVvar | kGuard | kAioRing | kShadowStack;
  const bool wiped = (vma.madv() >> MADV_WIPEONFORK & 1) != 0;
  return (vma.status() & kKind) == kAnonPrivate && (vma.flags() & (MAP_LOCKED | MAP_HUGETLB)) == 0 &&
         (vma.flags() & MAP_PRIVATE) != 0 && !wiped;
}

std::vector<sys::PageRange> lazy_ranges(const pb::MmEntry& mm) {
  std::vector<sys::PageRange> out;
  for (const pb::VmaEntry& vma : mm.vmas()) {
    if (can_be_lazy(vma)) {
      out.push_back({vma.start(), vma.end()});
    }
  }
  return out;
}

Division divide(const pb::MmEntry& mm, const std::vector<image::Extent>& extents) {
  Division out;
  int vma = 0;
  for (const image::Extent& extent : extents) {
    const std::uint64_t end = extent.vaddr + extent.page_count * image::kPageSize;
    for (std::uint64_t at = extent.vaddr; at < end;) {
      while (vma < mm.vmas_size() && ((mm.vmas(vma).status() & kGuard) != 0 || mm.vmas(vma).end() <= at)) {
        ++vma;
      }
      std::uint64_t until = end;
      bool lazy = false;
      if (vma < mm.vmas_size()) {
        const bool inside = mm.vmas(vma).start() <= at;
        until = std::min(end, inside ? mm.vmas(vma).end() : mm.vmas(vma).start());
        lazy = inside && can_be_lazy(mm.vmas(vma));
      }
      (lazy ? out.later : out.now).push_back(part_of(extent, at, until));
      at = until;
    }
  }
  return out;
}

Result<UniqueFd> make_userfaultfd(RestoreTask& task) {
  constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;
  FERRY_TRY(const UniqueFd device, sys::open_userfaultfd_device());
  tracee::Batch make;
  tracee::Value made;
  if (device) {
    // userfaultfd(2) wants CAP_SYS_PTRACE on this host, which a skeleton in a user namespace has not.
    const auto fetched =
        make.must("fetching /dev/userfaultfd", SYS_pidfd_getfd, {task.controller_pidfd, device.get(), 0});
    made = make.must("ioctl(USERFAULTFD_IOC_NEW)", SYS_ioctl, {fetched, sys::kNewUserfaultfd, kFlags});
    make.must("closing /dev/userfaultfd", SYS_close, {fetched});
  } else {
    made = make.must("userfaultfd(2), without /dev/userfaultfd", SYS_userfaultfd, {kFlags});
  }
  FERRY_TRY(const auto replies, task.process.run(task.leader(), make));
  const auto theirs = static_cast<int>(replies[made]);
  const UniqueFd pidfd{static_cast<int>(::syscall(SYS_pidfd_open, task.pid.value, 0))};
  if (!pidfd) {
    return sys_fail(fmt::format("pidfd_open({})", task.pid));
  }
  UniqueFd uffd{static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd.get(), theirs, 0))};
  if (!uffd) {
    return sys_fail(fmt::format("pidfd_getfd({}, {})", task.pid, theirs));
  }
  tracee::Batch close;
  close.must("closing the userfaultfd", SYS_close, {theirs});
  FERRY_CHECK(task.process.run(task.leader(), close));
  FERRY_CHECK(sys::missing_negotiate(uffd.get()));
  return uffd;
}

Result<void> make_missing(RestoreTask& task, const std::vector<sys::PageRange>& pages) {
  tracee::Batch batch;
  // khugepaged fills the holes of what it collapses with zeros, and looks at this first, with the address space locked
  // (PR_SET_THP_DISABLE(2const); Documentation/admin-guide/mm/transhuge.rst).  Of registered memory it fills none.
  batch.must("prctl(PR_SET_THP_DISABLE)", SYS_prctl, {PR_SET_THP_DISABLE, 1, 0, 0, 0});
  for (const sys::PageRange& range : pages) {
    batch.must("madvise(MADV_DONTNEED)", SYS_madvise, {range.start, range.end - range.start, MADV_DONTNEED});
  }
  FERRY_CHECK(task.process.run(task.leader(), batch).during("emptying memory that comes later"));
  return {};
}

// A program that has them disabled gets that back with its other limits.
Result<void> allow_huge_pages(RestoreTask& task) {
  tracee::Batch batch;
  batch.must("prctl(PR_SET_THP_DISABLE)", SYS_prctl, {PR_SET_THP_DISABLE, 0, 0, 0, 0});
  FERRY_CHECK(task.process.run(task.leader(), batch));
  return {};
}

// One extent may lie in several mappings: neighbours that the kernel has not made one.
Result<void> await_pages(int uffd, const pb::MmEntry& mm, const std::vector<image::Extent>& later) {
  const auto end_of = [](const image::Extent& extent) { return extent.vaddr + extent.page_count * image::kPageSize; };
  auto extent = later.begin();
  for (const pb::VmaEntry& vma : mm.vmas()) {
    while (extent != later.end() && end_of(*extent) <= vma.start()) {
      ++extent;
    }
    if (extent != later.end() && extent->vaddr < vma.end() && can_be_lazy(vma)) {
      FERRY_CHECK(sys::missing_register(uffd, vma.start(), vma.end()));
    }
  }
  return {};
}

}  // namespace ferry::state::memory
