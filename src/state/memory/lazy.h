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
// From now on whoever touches a page of the mappings that have pages in `later` waits for the descriptor's owner.
Result<void> await_pages(int uffd, const pb::MmEntry& mm, const std::vector<image::Extent>& later);

}  // namespace ferry::state::memory
