// Memory that comes after the program runs again: which, and how it is made to wait for it.
#pragma once

#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/page_store.h"
#include "image/proto/mm.pb.h"
#include "state/restore.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {

// CRIU's rule: private anonymous memory that is not locked, and is not the vDSO.  Not huge pages, which come as a
// whole only, and not what a child is to find empty (MADV_WIPEONFORK): a page that comes late would be in it.
bool can_be_lazy(const pb::VmaEntry& vma);
// All of it, sorted.
std::vector<sys::PageRange> lazy_ranges(const pb::MmEntry& mm);

// What is stored of a process, in two: what has to be there when it starts, and what may come later.
struct Division {
  std::vector<image::Extent> now, later;
};
Division divide(const pb::MmEntry& mm, const std::vector<image::Extent>& extents);

// A userfaultfd of the skeleton's address space.  Its area has to be mapped.
Result<UniqueFd> make_userfaultfd(RestoreTask& task);
// Makes sure that these pages are missing in the skeleton, whatever was written around them: a page that is there, if
// only because a huge one was made of its neighbours, raises no fault, and the program would find zeros in it.  No huge
// page is made from here until allow_huge_pages(), which is to be called when they are registered.
Result<void> make_missing(RestoreTask& task, const std::vector<sys::PageRange>& pages);
Result<void> allow_huge_pages(RestoreTask& task);
// From now on whoever touches a page of the mappings that have pages in `later` waits for the descriptor's owner.
Result<void> await_pages(int uffd, const pb::MmEntry& mm, const std::vector<image::Extent>& later);

}  // namespace ferry::state::memory
