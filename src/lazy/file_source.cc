#include "lazy/file_source.h"

#include <sys/mman.h>

#include <algorithm>

#include "sys/file.h"

namespace ferry::lazy {
namespace {

constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, Linux 5.14; older headers lack it

std::uint64_t end_of(const image::Extent& e) { return e.vaddr + e.page_count * image::kPageSize; }

}  // namespace

FileSource::~FileSource() {
  for (const auto& [fd, file] : files_) {
    ::munmap(const_cast<std::byte*>(file.base), file.size);
  }
}

Result<void> FileSource::add(NsPid pid, const std::vector<image::Extent>& extents) {
  for (const image::Extent& e : extents) {
    if (e.fd < 0) {
      continue;
    }
    File& file = files_[e.fd];
    if (file.base == nullptr) {
      FERRY_TRY(const auto stat, sys::stat_fd(e.fd, "a pages file"));
      file.size = static_cast<std::uint64_t>(stat.st_size);
      void* at = ::mmap(nullptr, file.size, PROT_READ, MAP_SHARED, e.fd, 0);
      if (at == MAP_FAILED) {
        files_.erase(e.fd);
        return sys_fail("mmap(pages file)");
      }
      file.base = static_cast<const std::byte*>(at);
    }
    extents_[pid].push_back(e);
  }
  return {};
}

const image::Extent* FileSource::find(NsPid pid, std::uint64_t address) const {
  const auto of_process = extents_.find(pid);
  if (of_process == extents_.end()) {
    return nullptr;
  }
  const auto& all = of_process->second;
  const auto at = std::upper_bound(all.begin(), all.end(), address,
                                   [](std::uint64_t a, const image::Extent& e) { return a < end_of(e); });
  return at != all.end() && at->vaddr <= address ? &*at : nullptr;
}

std::uint64_t FileSource::covers(const Range& range) const {
  const image::Extent* const extent = find(range.pid, range.start);
  return extent == nullptr ? 0 : std::min(end_of(*extent), range.end) - range.start;
}

Result<void> FileSource::ask(const Range& range) {
  const image::Extent* const extent = find(range.pid, range.start);
  if (extent == nullptr || end_of(*extent) < range.end) {
    return fail(Kind::invalid, "pages {:#x}-{:#x} of process {} are in no pages file", range.start, range.end,
                range.pid);
  }
  const std::byte* const from = files_.at(extent->fd).base + extent->offset + (range.start - extent->vaddr);
  const auto size = static_cast<std::size_t>(range.end - range.start);
  // One call instead of a fault of ours for each page.  What cannot be read shows when it is copied.
  (void)::madvise(const_cast<std::byte*>(from), size, kPopulateRead);
  ready_.push_back({range.pid, range.start, {from, size}});
  return {};
}

Result<std::optional<PageSource::Piece>> FileSource::take() {
  if (ready_.empty()) {
    return std::optional<Piece>();
  }
  const Piece piece = ready_.front();
  ready_.pop_front();
  return std::optional(piece);
}

}  // namespace ferry::lazy
