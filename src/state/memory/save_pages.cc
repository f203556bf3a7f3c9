// From a stopped process into pages-N.img.
#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <span>
#include <utility>

#include "base/log.h"
#include "image/page_store.h"
#include "state/memory/gather.h"
#include "state/memory/increment.h"
#include "state/memory/lazy.h"
#include "state/memory/memory.h"
#include "state/memory/pages.h"
#include "state/memory/read_pages.h"
#include "sys/file.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {
namespace {

// Ranges that reach over several mappings, one for each.
void split_at_borders(std::vector<sys::PageRange>& ranges, const pb::MmEntry& mm) {
  const std::vector<sys::PageRange> whole = std::exchange(ranges, {});
  std::size_t next = 0;
  for (const pb::VmaEntry& vma : mm.vmas()) {
    while (next < whole.size() && whole[next].end <= vma.start()) {
      ++next;
    }
    for (std::size_t i = next; i < whole.size() && whole[i].start < vma.end(); ++i) {
      ranges.push_back({std::max(whole[i].start, vma.start()), std::min(whole[i].end, vma.end())});
    }
  }
}

// Everything if there is no increment, or none for this process.
Result<Increment::Parts> parts_of(DumpTask& task, DumpContext& context, int pagemap) {
  Increment* const increment = context.increment;
  if (increment != nullptr && increment->tracks(task.pid)) {
    auto parts = increment->divide(task.pid, &task.mappings);
    if (parts.has_value()) {
      return parts;
    }
    log::warning("all pages of pid {} are saved: {}", task.pid, parts.error().message());
    increment->forget(task.pid);
  }
  Increment::Parts all;
  const auto& vmas = task.mm->vmas();
  for (int i = 0; i < vmas.size();) {
    // Neighbours in one question to the kernel: thousands of stacks and what lies between them are one range.
    const Kept what = kept(vmas[i]);
    const sys::Backing of = backing(vmas[i]);
    const std::uint64_t start = vmas[i].start();
    std::uint64_t end = start;
    for (;
         i < vmas.size() && (vmas[i].start() == end || end == start) && kept(vmas[i]) == what && backing(vmas[i]) == of;
         ++i) {
      end = vmas[i].end();
    }
    FERRY_CHECK(add_kept(what, of, pagemap, start, end, all.data, &all.guards));
  }
  split_at_borders(all.guards, *task.mm);
  return all;
}

// CRIU's marks: what a lazy restore may leave for later, and what stays in the tree until it is fetched.
std::uint32_t data_flags(const pb::VmaEntry& vma, bool leave) {
  if (!can_be_lazy(vma)) {
    return image::kPresent;
  }
  return leave ? std::uint32_t{image::kLazy} : std::uint32_t{image::kPresent} | image::kLazy;
}

struct Piece {
  std::uint64_t start, end;
  std::uint32_t flags;
};

// The parts of `ranges` in the mapping.  `next`: the first range that may reach into it; mappings come in order.
void add_pieces(const std::vector<sys::PageRange>& ranges, std::size_t& next, const pb::VmaEntry& vma,
                std::uint32_t flags, std::vector<Piece>& out) {
  while (next < ranges.size() && ranges[next].end <= vma.start()) {
    ++next;
  }
  for (std::size_t i = next; i < ranges.size() && ranges[i].start < vma.end(); ++i) {
    out.push_back({std::max(ranges[i].start, vma.start()), std::min(ranges[i].end, vma.end()), flags});
  }
}

// In ascending order, as readers of a pagemap expect it.
std::vector<Piece> pieces_of(const Increment::Parts& parts, const pb::MmEntry& mm, bool leave) {
  std::vector<Piece> out;
  std::size_t next_data = 0;
  std::size_t next_in_parent = 0;
  for (const pb::VmaEntry& vma : mm.vmas()) {
    if (kept(vma) == Kept::nothing) {
      continue;
    }
    const auto first = static_cast<std::ptrdiff_t>(out.size());
    add_pieces(parts.data, next_data, vma, data_flags(vma, leave), out);
    const auto middle = static_cast<std::ptrdiff_t>(out.size());
    add_pieces(parts.in_parent, next_in_parent, vma, image::kInParent, out);
    std::inplace_merge(out.begin() + first, out.begin() + middle, out.end(),
                       [](const Piece& a, const Piece& b) { return a.start < b.start; });
  }
  return out;
}

// Straight into the sink's memory if it has some to give.
Result<void> copy_out(DumpTask& task, const std::vector<Piece>& all, std::uint64_t bytes, Reading reading,
                      image::PageSink& sink) {
  if (const std::span<std::byte> room = sink.claim(bytes); !room.empty()) {
    std::vector<sys::PageRange> ranges;
    ranges.reserve(all.size());
    for (const Piece& piece : all) {
      sink.describe(piece.start, (piece.end - piece.start) / image::kPageSize, piece.flags);
      if ((piece.flags & image::kPresent) != 0) {
        ranges.push_back({piece.start, piece.end});
      }
    }
    return read_pages(task, std::move(ranges), reading, room);
  }
  Gather gather(task.pid, task.process.memory(), Gather::Source::stopped, reading, sink);
  for (const Piece& piece : all) {
    FERRY_CHECK(gather.add(piece.start, piece.end, piece.flags));
  }
  return gather.finish();
}

}  // namespace

Result<void> save_pages(DumpTask& task, DumpContext& context, Reading reading, DumpReport& report) {
  FERRY_TRY(const UniqueFd pagemap, sys::open_at(task.proc.get(), "pagemap", O_RDONLY));
  const image::Name name{image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid.value)};
  FERRY_TRY(const auto writer, context.open_pages(name));
  for (const pb::VmaEntry& vma : task.mm->vmas()) {
    report.pages_scanned += kept(vma) == Kept::nothing ? 0 : (vma.end() - vma.start()) / image::kPageSize;
  }
  FERRY_TRY(const auto parts, parts_of(task, context, pagemap.get()));
  const auto pieces = pieces_of(parts, *task.mm, context.options.lazy_pages);
  std::uint64_t pages = 0;
  for (const Piece& piece : pieces) {
    const std::uint64_t count = (piece.end - piece.start) / image::kPageSize;
    if ((piece.flags & image::kPresent) != 0) {
      pages += count;
    } else if ((piece.flags & image::kInParent) != 0) {
      report.pages_skipped_parent += count;
    }
  }
  FERRY_CHECK(copy_out(task, pieces, pages * image::kPageSize, reading, *writer));
  report.pages_written += pages;
  add_guards(parts.guards, *task.mm);
  return writer->finish();
}

}  // namespace ferry::state::memory
