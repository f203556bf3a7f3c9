// Memory that processes have in common since one was forked from the other, and that neither has written to since.
//
// The kernel keeps such a page once (copy-on-write, fork(2)).  A restore that filled every process by itself would
// need it as often as there are processes: workers that a large server has forked would take many times its memory.
// So what a process and those that are cloned from it have alike, at the same address, is in its skeleton before they
// are cloned, and everything else comes later as in any process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/error.h"
#include "image/page_store.h"
#include "state/restore.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {

class Inheritance {
 public:
  // `pages` has to outlive it.  `in_the_way`: what every skeleton has mapped, sorted.
  Inheritance(image::PageStore& pages, std::vector<sys::PageRange> in_the_way)
      : pages_(pages), in_the_way_(std::move(in_the_way)) {}

  // Before anybody is cloned from `from`: puts there what it has alike with any of the `heirs`, which will be cloned
  // from it, or from a helper that was.  Errors: corrupt, os.
  Result<void> prepare(RestoreTask& from, const std::vector<RestoreTask*>& heirs);
  // `child` was cloned from `from`, whose memory it has now.  Either may be a helper.
  void pass_on(const tracee::Process& from, const tracee::Process& child);

  // When the tree is complete: adds to the batch what takes away all memory that is not the task's.
  void settle(const RestoreTask& task, tracee::Batch& batch);
  // After settle(): the parts of a mapping that are in place, readable and writable.
  [[nodiscard]] std::vector<sys::PageRange> in_place(const RestoreTask& task, const pb::VmaEntry& vma) const;
  // After settle(): what of its pages is still to be written.
  Result<std::vector<image::Extent>> to_write(const RestoreTask& task);

 private:
  struct Mapping {
    std::uint64_t start = 0, end = 0;
    std::uint32_t flags = 0;
  };
  struct Estate {
    std::vector<Mapping> mappings;        // sorted
    std::vector<sys::PageRange> touched;  // sorted; of them, what was ever written
  };

  [[nodiscard]] const Estate& estate_of(const tracee::Process& process) const;
  [[nodiscard]] std::vector<Mapping> candidates(const RestoreTask& from, const std::vector<RestoreTask*>& heirs) const;
  Result<std::vector<sys::PageRange>> alike(const RestoreTask& from, const RestoreTask& heir,
                                            const std::vector<Mapping>& where);
  Result<const std::vector<image::Extent>*> extents_of(const RestoreTask& task);

  image::PageStore& pages_;
  std::vector<sys::PageRange> in_the_way_;
  std::map<const tracee::Process*, std::shared_ptr<const Estate>> estates_;
  std::map<const tracee::Process*, std::vector<sys::PageRange>> own_;  // in the skeleton with the task's own content
  std::map<const tracee::Process*, std::vector<sys::PageRange>> staying_;  // after settle()
  std::map<const RestoreTask*, std::vector<image::Extent>> extents_;
  std::unique_ptr<std::byte[]> mine_, theirs_;  // to compare in
};

}  // namespace ferry::state::memory
