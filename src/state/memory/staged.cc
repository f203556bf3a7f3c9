#include "state/memory/staged.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "state/memory/pages.h"
#include "sys/file.h"
#include "sys/memory.h"

namespace ferry::state::memory {
namespace {

constexpr std::uint64_t kUserEnd = 0x7ffffffff000;  // end of a 47-bit address space
// What is done at the very end, whatever was there before.
constexpr std::uint32_t kNotNow = MAP_LOCKED | MAP_POPULATE;

bool can_be_staged(const pb::VmaEntry& vma) {
  return (vma.status() & (kRegular | kAnonPrivate)) == (kRegular | kAnonPrivate) &&
         (vma.status() & (kVdso | kVvar | kVsyscall | kGuard | kAioRing | kShadowStack)) == 0 &&
         (vma.flags() & MAP_HUGETLB) == 0;
}

}  // namespace

bool Staged::fits(const Mapping& mapping, const pb::VmaEntry& vma) {
  // An advice cannot be taken back.
  return can_be_staged(vma) && mapping.flags == (vma.flags() & ~kNotNow) && (mapping.advice & ~vma.madv()) == 0;
}

Result<Staged> Staged::plan(const pb::MmEntry& mm, const std::vector<sys::PageRange>& in_the_way, int buffer,
                            tracee::Batch& batch) {
  Staged out;
  for (const pb::VmaEntry& vma : mm.vmas()) {
    const bool blocked = std::any_of(in_the_way.begin(), in_the_way.end(), [&](const sys::PageRange& other) {
      return vma.start() < other.end && other.start < vma.end();
    });
    // Address space that is only reserved counts against the limit of memory when it is mapped to be written
    // to, and may be larger than all memory; pages that it has nevertheless wait in the buffer.
    if (blocked || vma.prot() == PROT_NONE || !can_be_staged(vma) || vma.start() >= vma.end() || vma.end() > kUserEnd) {
      continue;
    }
    const Mapping mapping{vma.start(), vma.end(), vma.flags() & ~kNotNow, vma.madv()};
    const std::uint64_t size = mapping.end - mapping.start;
    batch.must(
        "mmap(ahead of time)", SYS_mmap,
        {mapping.start, size, PROT_READ | PROT_WRITE, mapping.flags | MAP_FIXED_NOREPLACE | MAP_ANONYMOUS, -1, 0});
    for (int advice = 0; advice < 64; ++advice) {
      if ((mapping.advice >> advice & 1) != 0) {
        batch.must("madvise", SYS_madvise, {mapping.start, size, advice});
      }
    }
    out.mappings_.push_back(mapping);
  }
  out.buffer_ = UniqueFd(::openat(buffer, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!out.buffer_) {
    return sys_fail("openat(buffer, O_TMPFILE)");
  }
  return out;
}

// What has a mapping in the skeleton goes there, all of it at once; the rest waits in the buffer.
Result<void> Staged::write(const RestoreTask& task, std::span<const sys::Placed> pages) {
  std::vector<sys::Placed> in_place;
  std::vector<sys::Placed> buffered;
  for (sys::Placed rest : pages) {
    auto mapping = std::upper_bound(mappings_.begin(), mappings_.end(), rest.address,
                                    [](std::uint64_t at, const Mapping& m) { return at < m.end; });
    while (!rest.bytes.empty()) {
      const bool here = mapping != mappings_.end() && mapping->start <= rest.address;
      const std::uint64_t border = mapping == mappings_.end() ? ~0ULL : here ? mapping->end : mapping->start;
      const auto part = rest.bytes.first(std::min<std::uint64_t>(rest.bytes.size(), border - rest.address));
      (here ? in_place : buffered).push_back({rest.address, part});
      mapping += here ? 1 : 0;
      rest = {rest.address + part.size(), rest.bytes.subspan(part.size())};
    }
  }
  FERRY_CHECK(sys::write_parts(task.pid, in_place, task.process.memory()));
  for (const sys::Placed& part : buffered) {
    if (::pwrite(buffer_.get(), part.bytes.data(), part.bytes.size(), static_cast<off_t>(part.address)) !=
        static_cast<ssize_t>(part.bytes.size())) {
      return sys_fail("pwrite(pages that arrived)");
    }
  }
  const std::lock_guard<std::mutex> held(*lock_);
  for (const sys::Placed& part : in_place) {
    const std::uint64_t end = part.address + part.bytes.size();
    touched_.add(part.address, end);
    content_.add(part.address, end);
    buffered_.remove(part.address, end);
    zeros_.remove(part.address, end);
  }
  for (const sys::Placed& part : buffered) {
    const std::uint64_t end = part.address + part.bytes.size();
    buffered_.add(part.address, end);
    content_.remove(part.address, end);
    zeros_.remove(part.address, end);
  }
  return {};
}

// In anonymous memory a page of zeros is one that is not there.  Elsewhere it is written like any other: the
// file below may hold something else.
Result<void> Staged::write_zeros(std::uint64_t vaddr, std::uint64_t bytes) {
  const std::uint64_t end = vaddr + bytes;
  const std::lock_guard<std::mutex> held(*lock_);
  content_.remove(vaddr, end);
  buffered_.remove(vaddr, end);
  zeros_.remove(vaddr, end);
  if (::fallocate(buffer_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(vaddr),
                  static_cast<off_t>(bytes)) != 0) {
    return sys_fail("fallocate(pages that arrived, PUNCH_HOLE)");
  }
  auto mapping = std::upper_bound(mappings_.begin(), mappings_.end(), vaddr,
                                  [](std::uint64_t at, const Mapping& m) { return at < m.end; });
  for (; vaddr < end; ++mapping) {
    const std::uint64_t start = mapping == mappings_.end() ? end : std::clamp(mapping->start, vaddr, end);
    buffered_.add(vaddr, start);
    vaddr = start;
    if (mapping == mappings_.end()) {
      break;
    }
    const std::uint64_t border = std::min(mapping->end, end);
    zeros_.add(vaddr, border);
    vaddr = border;
  }
  return {};
}

// What is not in the skeleton costs nothing in the pause, and stays as it is.
void Staged::drop(std::vector<sys::PageRange> stale, tracee::Batch& batch) {
  tidy(stale);
  const std::lock_guard<std::mutex> held(*lock_);
  for (const sys::PageRange& range : common(touched_.ranges(), stale)) {
    batch.must("madvise(MADV_DONTNEED)", SYS_madvise, {range.start, range.end - range.start, MADV_DONTNEED});
    touched_.remove(range.start, range.end);
    content_.remove(range.start, range.end);
  }
}

Result<void> Staged::to_buffer(const RestoreTask& task, const std::vector<sys::PageRange>& ranges) {
  constexpr std::size_t kPiece = 4U << 20;
  std::vector<std::byte> bytes;
  for (const sys::PageRange& range : ranges) {
    for (std::uint64_t at = range.start; at < range.end;) {
      bytes.resize(std::min<std::uint64_t>(kPiece, range.end - at));
      FERRY_CHECK(sys::read_memory(task.pid, at, bytes, task.process.memory()));
      if (::pwrite(buffer_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at)) !=
          static_cast<ssize_t>(bytes.size())) {
        return sys_fail("pwrite(pages that arrived)");
      }
      at += bytes.size();
    }
    buffered_.add(range.start, range.end);
    content_.remove(range.start, range.end);
  }
  return {};
}

Result<void> Staged::evacuate(RestoreTask& task) {
  const std::vector<sys::PageRange> all = content_.ranges();
  FERRY_CHECK(to_buffer(task, all));
  mappings_.clear();
  touched_ = {};
  content_ = {};
  return {};
}

Result<void> Staged::settle(const RestoreTask& task, const pb::MmEntry& mm, std::vector<sys::PageRange> pages,
                            tracee::Batch& batch) {
  tidy(pages);
  // What of each mapping stays.
  std::vector<Mapping> stays;
  std::vector<sys::PageRange> staying;
  std::vector<sys::PageRange> anonymous;
  auto mapping = mappings_.begin();
  for (const pb::VmaEntry& vma : mm.vmas()) {
    if ((vma.status() & kAnonPrivate) != 0) {
      anonymous.push_back({vma.start(), vma.end()});
    }
    while (mapping != mappings_.end() && mapping->end <= vma.start()) {
      ++mapping;
    }
    for (auto m = mapping; m != mappings_.end() && m->start < vma.end(); ++m) {
      if (fits(*m, vma)) {
        stays.push_back({std::max(m->start, vma.start()), std::min(m->end, vma.end()), m->flags, m->advice});
        staying.push_back({stays.back().start, stays.back().end});
      }
    }
  }
  std::vector<sys::PageRange> all;
  for (const Mapping& m : mappings_) {
    all.push_back({m.start, m.end});
  }
  // A mapping that the task has replaced since the look by one with other flags (a reservation that it uses
  // by now, for instance) goes, and its pages have arrived in it all the same.
  FERRY_CHECK(to_buffer(task, without(common(content_.ranges(), pages), staying)));
  // So have pages of zeros, which only anonymous memory has by itself.
  for (const sys::PageRange& zeros : without(common(zeros_.ranges(), pages), anonymous)) {
    buffered_.add(zeros.start, zeros.end);  // the buffer has a hole there
    zeros_.remove(zeros.start, zeros.end);
  }
  for (const sys::PageRange& gone : without(all, staying)) {
    batch.must("munmap(what is mapped no more)", SYS_munmap, {gone.start, gone.end - gone.start});
  }
  const auto valid = common(common(content_.ranges(), staying), pages);
  for (const sys::PageRange& stale : without(common(touched_.ranges(), staying), valid)) {
    batch.must("madvise(MADV_DONTNEED)", SYS_madvise, {stale.start, stale.end - stale.start, MADV_DONTNEED});
  }
  to_write_ = common(buffered_.ranges(), pages);
  const auto missing = without(without(without(pages, valid), to_write_), zeros_.ranges());
  if (!missing.empty()) {
    return fail(Kind::corrupt, "{} pages at {:#x} and after have not arrived", count_pages(missing),
                missing.front().start);
  }
  mappings_ = std::move(stays);
  return {};
}

std::vector<sys::PageRange> Staged::in_place(const pb::VmaEntry& vma) const {
  std::vector<sys::PageRange> out;
  for (auto m = std::upper_bound(mappings_.begin(), mappings_.end(), vma.start(),
                                 [](std::uint64_t at, const Mapping&other) { return at < other.end; });
       m != mappings_.end() && m->start < vma.end(); ++m) {
    out.push_back({m->start, m->end});
  }
  return out;
}

std::vector<image::Extent> Staged::to_write() const {
  std::vector<image::Extent> out;
  for (const sys::PageRange& range : to_write_) {
    out.push_back({range.start, range.pages(), buffer_.get(), range.start});
  }
  return out;
}

}  // namespace ferry::state::memory
