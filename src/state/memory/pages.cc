#include "state/memory/pages.h"

#include <sys/mman.h>

#include <algorithm>

#include "state/memory/memory.h"

namespace ferry::state::memory {
namespace {

void append(std::vector<sys::PageRange>& out, std::uint64_t start, std::uint64_t end) {
  if (start >= end) {
    return;
  }
  if (!out.empty() && out.back().end == start) {
    out.back().end = end;
  } else {
    out.push_back({start, end});
  }
}

}  // namespace

Kept kept(const sys::Mapping& m) {
  if (m.name == "[vdso]") {
    return Kept::everything;
  }
  const bool of_kernel =
      m.name == "[vvar]" || m.name == "[vvar_vclock]" || m.name == "[vsyscall]" || m.name == "[uprobes]";
  return m.shared || of_kernel ? Kept::nothing : Kept::own_pages;
}

Kept kept(const pb::VmaEntry& vma) {
  if ((vma.status() & kVdso) != 0) {
    return Kept::everything;
  }
  const bool own = (vma.status() & kRegular) != 0 && (vma.status() & (kVvar | kGuard | kUprobes)) == 0 &&
                   (vma.flags() & MAP_PRIVATE) != 0;
  return own ? Kept::own_pages : Kept::nothing;
}

sys::Backing backing(const sys::Mapping& m) { return m.inode != 0 ? sys::Backing::file : sys::Backing::nothing; }

sys::Backing backing(const pb::VmaEntry& vma) {
  // Huge pages without a file of the program's own have one of the kernel's.
  const bool none = (vma.status() & kAnonPrivate) != 0 && (vma.flags() & MAP_HUGETLB) == 0;
  return none ? sys::Backing::nothing : sys::Backing::file;
}

Result<void> add_kept(Kept what, sys::Backing backing, int pagemap, std::uint64_t start, std::uint64_t end,
                      std::vector<sys::PageRange>& out, std::vector<sys::PageRange>* guards) {
  switch (what) {
    case Kept::nothing:
      return {};
    case Kept::own_pages:
      return sys::own_pages(pagemap, start, end, backing, out, guards);
    case Kept::everything:
      append(out, start, end);
      return {};
  }
  return {};
}

void add_guards(const std::vector<sys::PageRange>& guards, pb::MmEntry& mm) {
  for (const sys::PageRange& range : guards) {
    pb::VmaEntry& vma = *mm.add_vmas();
    vma.set_start(range.start);
    vma.set_end(range.end);
    vma.set_pgoff(0);
    vma.set_shmid(0);
    vma.set_prot(0);
    vma.set_flags(0);
    vma.set_status(kGuard);
    vma.set_fd(-1);
  }
}

std::vector<sys::PageRange> common(const std::vector<sys::PageRange>& a, const std::vector<sys::PageRange>& b) {
  std::vector<sys::PageRange> out;
  auto other = b.begin();
  for (const sys::PageRange& r : a) {
    while (other != b.end() && other->end <= r.start) {
      ++other;
    }
    for (auto it = other; it != b.end() && it->start < r.end; ++it) {
      append(out, std::max(r.start, it->start), std::min(r.end, it->end));
    }
  }
  return out;
}

std::vector<sys::PageRange> without(const std::vector<sys::PageRange>& a, const std::vector<sys::PageRange>& b) {
  std::vector<sys::PageRange> out;
  auto other = b.begin();
  for (const sys::PageRange& r : a) {
    while (other != b.end() && other->end <= r.start) {
      ++other;
    }
    std::uint64_t at = r.start;
    for (auto it = other; it != b.end() && it->start < r.end; ++it) {
      append(out, at, it->start);
      at = std::max(at, it->end);
    }
    append(out, at, r.end);
  }
  return out;
}

void tidy(std::vector<sys::PageRange>& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.start < b.start; });
  std::vector<sys::PageRange> out;
  for (const sys::PageRange& r : ranges) {
    if (!out.empty() && r.start <= out.back().end) {
      out.back().end = std::max(out.back().end, r.end);
    } else {
      out.push_back(r);
    }
  }
  ranges = std::move(out);
}

std::uint64_t count_pages(const std::vector<sys::PageRange>& ranges) {
  std::uint64_t pages = 0;
  for (const sys::PageRange& r : ranges) {
    pages += r.pages();
  }
  return pages;
}

}  // namespace ferry::state::memory
