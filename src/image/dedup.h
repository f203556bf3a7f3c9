// Room that a row of incremental sets can do without: pages that a later set holds anew.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace ferry::image {

// Punches holes into the pages files of the parents, where the set in `directory` has the content itself.
// From then on the parents are of use only below this set.  Returns the number of pages; 0 without a parent.
// Errors: corrupt, os (a file system that cannot punch holes, fallocate(2)).
Result<std::uint64_t> punch_parents(int directory);

// The same for a directory that a page server has filled, which has nothing but pagemaps and pages.
Result<std::uint64_t> punch_received(int directory);

// Punches out all that a restore of the set in `directory` has read, of its parents as well.
Result<std::uint64_t> punch_all(int directory);

}  // namespace ferry::image
