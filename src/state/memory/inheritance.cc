#include "state/memory/inheritance.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>

#include "base/log.h"
#include "state/memory/memory.h"
#include "state/memory/pages.h"
#include "state/memory/room.h"
#include "sys/file.h"

namespace ferry::state::memory {
namespace {

constexpr std::uint64_t kPage = image::kPageSize;
constexpr std::size_t kPiece = 1U << 20;  // bytes compared at a time
// What is done at the very end, whatever was there before.
constexpr std::uint32_t kNotNow = MAP_LOCKED | MAP_POPULATE;

std::uint32_t flags_of(const pb::VmaEntry& vma) { return vma.flags() & ~kNotNow; }

bool is_private_memory(const pb::VmaEntry& vma) {
  return (vma.status() & (kRegular | kAnonPrivate)) == (kRegular | kAnonPrivate) &&
         (vma.status() & (kVdso | kVvar | kVsyscall | kGuard | kAioRing | kShadowStack | kUprobes)) == 0 &&
         (vma.flags() & MAP_HUGETLB) == 0 && !vma.ferry_droppable() && vma.start() < vma.end() && vma.end() <= kUserEnd;
}

// Address space that is only reserved may be larger than all memory.
bool can_be_left(const pb::VmaEntry& vma) { return is_private_memory(vma) && vma.prot() != PROT_NONE; }

std::vector<sys::PageRange> ranges_of(const std::vector<image::Extent>& extents) {
  std::vector<sys::PageRange> out;
  for (const image::Extent& e : extents) {
    if (e.fd >= 0) {
      out.push_back({e.vaddr, e.vaddr + e.page_count * kPage});
    }
  }
  return out;
}

// The parts of extents that are in the ranges, both sorted.
std::vector<image::Extent> parts_of(const std::vector<image::Extent>& extents,
                                    const std::vector<sys::PageRange>& ranges) {
  std::vector<image::Extent> out;
  auto range = ranges.begin();
  for (const image::Extent& e : extents) {
    const std::uint64_t end = e.vaddr + e.page_count * kPage;
    while (range != ranges.end() && range->end <= e.vaddr) {
      ++range;
    }
    for (auto r = range; r != ranges.end() && r->start < end; ++r) {
      const std::uint64_t from = std::max(r->start, e.vaddr);
      const std::uint64_t to = std::min(r->end, end);
      out.push_back({from, (to - from) / kPage, e.fd, e.offset + (from - e.vaddr)});
    }
  }
  return out;
}

// The content of [start, start + room.size()), all of which the extents cover.
Result<void> read(const std::vector<image::Extent>& extents, std::uint64_t start, std::span<std::byte> room) {
  auto e = std::upper_bound(extents.begin(), extents.end(), start, [](std::uint64_t at, const image::Extent& other) {
    return at < other.vaddr + other.page_count * kPage;
  });
  while (!room.empty()) {
    const std::uint64_t into = start - e->vaddr;
    const std::size_t take = std::min<std::uint64_t>(room.size(), e->page_count * kPage - into);
    FERRY_CHECK(sys::pread_exactly(e->fd, room.data(), take, e->offset + into, "a pages file"));
    room = room.subspan(take);
    start += take;
    ++e;
  }
  return {};
}

void add(std::vector<sys::PageRange>& to, const std::vector<sys::PageRange>& more) {
  to.insert(to.end(), more.begin(), more.end());
  tidy(to);
}

}  // namespace

const Inheritance::Estate& Inheritance::estate_of(const tracee::Process& process) const {
  static const Estate kNothing;
  const auto found = estates_.find(&process);
  return found == estates_.end() ? kNothing : *found->second;
}

Result<const std::vector<image::Extent>*> Inheritance::extents_of(const RestoreTask& task) {
  const auto known = extents_.find(&task);
  if (known != extents_.end()) {
    return &known->second;
  }
  FERRY_TRY(auto extents, pages_.extents({image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid().value)}));
  return &extents_.emplace(&task, std::move(extents)).first->second;
}

// Neighbours of one kind are one mapping, whatever their protection.  Each reaches as far as those of the heirs do,
// since a mapping of a forked process that is made in two goes stays two: in what the kernel shows of it as well.
std::vector<Inheritance::Mapping> Inheritance::candidates(const RestoreTask& from,
                                                          const std::vector<RestoreTask*>& heirs) const {
  std::vector<Mapping> runs;
  std::vector<sys::PageRange> taken = in_the_way_;
  for (const pb::VmaEntry& vma : from.mm->vmas()) {
    if ((vma.status() & kGuard) != 0) {
      continue;  // a note about pages of another mapping
    }
    taken.push_back({vma.start(), vma.end()});
    const std::uint64_t kept_back = std::uint64_t{1} << MADV_DONTFORK | std::uint64_t{1} << MADV_WIPEONFORK;
    if (!can_be_left(vma) || (vma.madv() & kept_back) != 0) {
      continue;
    }
    if (!runs.empty() && runs.back().end == vma.start() && runs.back().flags == flags_of(vma)) {
      runs.back().end = vma.end();
    } else {
      runs.push_back({vma.start(), vma.end(), flags_of(vma)});
    }
  }
  for (const Mapping& inherited : estate_of(from.process).mappings) {
    taken.push_back({inherited.start, inherited.end});
  }
  std::sort(taken.begin(), taken.end(), [](const auto& a, const auto& b) { return a.start < b.start; });
  std::vector<std::uint64_t> end_before(taken.size() + 1, 0);  // of all that begins before that one
  for (std::size_t i = 0; i < taken.size(); ++i) {
    end_before[i + 1] = std::max(end_before[i], taken[i].end);
  }
  std::vector<Mapping> wider = runs;
  for (const RestoreTask* const heir : heirs) {
    auto run = runs.begin();
    for (const pb::VmaEntry& vma : heir->mm->vmas()) {
      while (run != runs.end() && run->end <= vma.start()) {
        ++run;
      }
      if (run == runs.end()) {
        break;
      }
      if (vma.end() > run->start && is_private_memory(vma) && flags_of(vma) == run->flags) {
        Mapping& widened = wider[static_cast<std::size_t>(run - runs.begin())];
        widened.start = std::min(widened.start, vma.start());
        widened.end = std::max(widened.end, vma.end());
      }
    }
  }
  for (std::size_t i = 0; i < runs.size(); ++i) {
    // Not over its neighbours.
    const auto next = std::lower_bound(taken.begin(), taken.end(), runs[i].end,
                                       [](const sys::PageRange& r, std::uint64_t at) { return r.start < at; });
    if (next != taken.end()) {
      wider[i].end = std::min(wider[i].end, next->start);
    }
    const auto first = std::lower_bound(taken.begin(), taken.end(), runs[i].start,
                                        [](const sys::PageRange& r, std::uint64_t at) { return r.start < at; });
    const std::uint64_t below =
        std::max(i == 0 ? 0 : wider[i - 1].end, end_before[static_cast<std::size_t>(first - taken.begin())]);
    wider[i].start = std::max(wider[i].start, std::min(below, runs[i].start));
  }
  return wider;
}

Result<std::vector<sys::PageRange>> Inheritance::alike(const RestoreTask& from, const RestoreTask& heir,
                                                       const std::vector<Mapping>& where) {
  std::vector<sys::PageRange> both;
  auto mapping = where.begin();
  for (const pb::VmaEntry& vma : heir.mm->vmas()) {
    while (mapping != where.end() && mapping->end <= vma.start()) {
      ++mapping;
    }
    if (mapping != where.end() && is_private_memory(vma) && mapping->start <= vma.start() &&
        vma.end() <= mapping->end && mapping->flags == flags_of(vma)) {
      both.push_back({vma.start(), vma.end()});
    }
  }
  FERRY_TRY(const auto* mine, extents_of(from));
  FERRY_TRY(const auto* theirs, extents_of(heir));
  std::vector<sys::PageRange> out;
  if (mine_ == nullptr) {
    mine_ = std::make_unique_for_overwrite<std::byte[]>(kPiece);
    theirs_ = std::make_unique_for_overwrite<std::byte[]>(kPiece);
  }
  for (const sys::PageRange& range : common(common(ranges_of(*mine), ranges_of(*theirs)), both)) {
    for (std::uint64_t at = range.start; at < range.end;) {
      const std::size_t take = std::min<std::uint64_t>(kPiece, range.end - at);
      FERRY_CHECK(read(*mine, at, {mine_.get(), take}));
      FERRY_CHECK(read(*theirs, at, {theirs_.get(), take}));
      for (std::size_t i = 0; i < take; i += kPage) {
        if (std::memcmp(mine_.get() + i, theirs_.get() + i, kPage) == 0) {
          if (!out.empty() && out.back().end == at + i) {
            out.back().end += kPage;
          } else {
            out.push_back({at + i, at + i + kPage});
          }
        }
      }
      at += take;
    }
  }
  return out;
}

Result<void> Inheritance::prepare(RestoreTask& from, const std::vector<RestoreTask*>& heirs) {
  std::vector<Mapping> fresh = candidates(from, heirs);
  const Estate& inherited = estate_of(from.process);
  // What it has inherited it can leave as well; where that is in the way of more, it leaves no more.
  std::erase_if(fresh, [&](const Mapping& m) {
    const auto other = std::upper_bound(inherited.mappings.begin(), inherited.mappings.end(), m.start,
                                        [](std::uint64_t at, const Mapping& o) { return at < o.end; });
    return other != inherited.mappings.end() && other->start < m.end;
  });
  std::vector<Mapping> where = inherited.mappings;
  where.insert(where.end(), fresh.begin(), fresh.end());
  std::sort(where.begin(), where.end(), [](const Mapping& a, const Mapping& b) { return a.start < b.start; });
  std::vector<sys::PageRange> wanted;
  for (const RestoreTask* const heir : heirs) {
    FERRY_TRY(auto same,
              alike(from, *heir, where).during("comparing pid {} with pid {}", from.ns_pid(), heir->ns_pid()));
    add(wanted, same);
    own_[&heir->process] = std::move(same);
  }
  if (wanted.empty()) {
    return {};
  }
  auto estate = std::make_shared<Estate>(inherited);
  tracee::Batch batch;
  for (const Mapping& m : fresh) {
    if (!common(wanted, {{m.start, m.end}}).empty()) {
      batch.must(
          "mmap(memory that is shared with children)", SYS_mmap,
          {m.start, m.end - m.start, PROT_READ | PROT_WRITE, m.flags | MAP_FIXED_NOREPLACE | MAP_ANONYMOUS, -1, 0});
      estate->mappings.push_back(m);
    }
  }
  std::sort(estate->mappings.begin(), estate->mappings.end(),
            [](const Mapping& a, const Mapping& b) { return a.start < b.start; });
  if (!batch.empty()) {
    FERRY_CHECK(from.process.run(from.leader(), batch));
  }
  FERRY_TRY(const auto* extents, extents_of(from));
  FERRY_TRY(const std::uint64_t pages,
            fill(from, parts_of(*extents, without(wanted, own_[&from.process])), KernelMappings{}));
  log::debug("pid {} has {} pages in common with those that are cloned from it, {} of them inherited", from.ns_pid(),
             count_pages(wanted), count_pages(wanted) - pages);
  add(own_[&from.process], wanted);
  add(estate->touched, wanted);
  estates_[&from.process] = std::move(estate);
  return {};
}

void Inheritance::pass_on(const tracee::Process& from, const tracee::Process& child) {
  if (const auto found = estates_.find(&from); found != estates_.end()) {
    estates_[&child] = found->second;
  }
}

void Inheritance::settle(const RestoreTask& task, tracee::Batch& batch) {
  const Estate& estate = estate_of(task.process);
  std::vector<sys::PageRange>& staying = staying_[&task.process];
  std::vector<sys::PageRange> all;
  auto mapping = estate.mappings.begin();
  for (const pb::VmaEntry& vma : task.mm->vmas()) {
    while (mapping != estate.mappings.end() && mapping->end <= vma.start()) {
      ++mapping;
    }
    if (mapping != estate.mappings.end() && is_private_memory(vma) && mapping->flags == flags_of(vma) &&
        mapping->start <= vma.start() && vma.end() <= mapping->end) {
      staying.push_back({vma.start(), vma.end()});
    }
  }
  for (const Mapping& m : estate.mappings) {
    all.push_back({m.start, m.end});
  }
  for (const sys::PageRange& gone : without(all, staying)) {
    batch.must("munmap(what only another process has)", SYS_munmap, {gone.start, gone.end - gone.start});
  }
  for (const sys::PageRange& stale : without(common(estate.touched, staying), own_[&task.process])) {
    batch.must("madvise(MADV_DONTNEED)", SYS_madvise, {stale.start, stale.end - stale.start, MADV_DONTNEED});
  }
}

std::vector<sys::PageRange> Inheritance::in_place(const RestoreTask& task, const pb::VmaEntry& vma) const {
  const auto found = staying_.find(&task.process);
  if (found == staying_.end() || !is_private_memory(vma)) {
    return {};
  }
  const auto at = std::lower_bound(found->second.begin(), found->second.end(), vma.start(),
                                   [](const sys::PageRange& r, std::uint64_t start) { return r.start < start; });
  return at != found->second.end() && at->start == vma.start() && at->end == vma.end() ? std::vector{*at}
                                                                                       : std::vector<sys::PageRange>();
}

Result<std::vector<image::Extent>> Inheritance::to_write(const RestoreTask& task) {
  FERRY_TRY(const auto* extents, extents_of(task));
  const auto own = own_.find(&task.process);
  const auto staying = staying_.find(&task.process);
  if (own == own_.end() || staying == staying_.end() || own->second.empty()) {
    return *extents;
  }
  std::vector<sys::PageRange> all;
  for (const image::Extent& e : *extents) {
    all.push_back({e.vaddr, e.vaddr + e.page_count * kPage});
  }
  return parts_of(*extents, without(all, common(own->second, staying->second)));
}

}  // namespace ferry::state::memory
