// Memory of a task that is built in its skeleton while the task still runs elsewhere.
//
// The private anonymous mappings that the task had when it was looked at are made at their final addresses,
// and pages are written there as they arrive, again and again.  When the task has been stopped and its final
// mappings are known, settle() makes of all this what they say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/page_store.h"
#include "image/proto/mm.pb.h"
#include "state/memory/memory.h"
#include "state/memory/page_set.h"
#include "state/restore.h"
#include "sys/memory.h"

namespace ferry::state::memory {

class Staged {
 public:
  // Adds what has to be mapped to a batch of the skeleton.  `in_the_way`: what the skeleton has mapped.
  // `buffer`: a directory on tmpfs for the pages of all other mappings.
  static Result<Staged> plan(const pb::MmEntry& mm, const std::vector<sys::PageRange>& in_the_way, int buffer,
                             tracee::Batch& batch);

  // Pages that arrived; `task` owns the skeleton.  These two may be called by several threads at the same time,
  // for different pages.  Errors: corrupt, os.
  Result<void> write(const RestoreTask& task, std::span<const sys::Placed> pages);
  Result<void> write_zeros(std::uint64_t vaddr, std::uint64_t bytes);

  // These pages are known to be stale: what is in the skeleton of them is thrown away by the batch, while there is
  // time.
  void drop(std::vector<sys::PageRange> stale, tracee::Batch& batch);

  // Takes everything out of the skeleton, which is going to be made anew.
  Result<void> evacuate(RestoreTask& task);

  // `mm`: the final mappings; `pages`: those that belong to the task, sorted.  Takes the pages out of
  // mappings that do not stay, and adds to the batch what takes away everything else.  Errors: corrupt, if a
  // page that belongs to the task has not arrived.
  Result<void> settle(const RestoreTask& task, const pb::MmEntry& mm, std::vector<sys::PageRange> pages,
                      tracee::Batch& batch);
  // After settle(): the parts of a mapping that are in place, with the flags it wants, readable and writable.
  [[nodiscard]] std::vector<sys::PageRange> in_place(const pb::VmaEntry& vma) const;
  // After settle(): the pages that are not in place, to be written when everything is mapped.
  [[nodiscard]] std::vector<image::Extent> to_write() const;

 private:
  struct Mapping {
    std::uint64_t start = 0, end = 0;
    std::uint32_t flags = 0;
    std::uint64_t advice = 0;
  };
  // Moves pages that are in the skeleton to the buffer.
  Result<void> to_buffer(const RestoreTask& task, const std::vector<sys::PageRange>& ranges);
  [[nodiscard]] static bool fits(const Mapping& mapping, const pb::VmaEntry& vma);

  std::vector<Mapping> mappings_;                                      // sorted; in the skeleton
  std::unique_ptr<std::mutex> lock_ = std::make_unique<std::mutex>();  // of the sets, while pages arrive
  PageSet touched_;                                                    // of them, what was ever written
  PageSet content_, buffered_, zeros_;  // where the last content of a page is; none is in two of them
  UniqueFd buffer_;                     // the page at address A stands at offset A
  std::vector<sys::PageRange> to_write_;
};

}  // namespace ferry::state::memory
