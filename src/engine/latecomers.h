// Whoever brings a restored tree the pages that do not come with it.
#pragma once

#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "sys/pagemap.h"

namespace ferry::engine {

class Latecomers {
 public:
  virtual ~Latecomers() = default;
  // From now on whoever touches one of these pages of the process waits, we included, and touching any other page of
  // the same mappings for the first time waits, too.  `uffd`: nonblocking, negotiated (sys/missing_pages.h).
  // Pages may be put there at once, by another thread than the one that builds the tree.
  virtual Result<void> await(NsPid pid, UniqueFd uffd, const std::vector<sys::PageRange>& missing) = 0;
};

}  // namespace ferry::engine
