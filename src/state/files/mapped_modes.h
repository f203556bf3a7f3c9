// How files that are only mapped have to be opened.
#pragma once

#include "image/set.h"

namespace ferry::state {

// CRIU notes the access mode of a mapped file with the mapping (fdflags) and leaves the flags of the file
// entry empty; ferry opens by the entry alone.  Gives each file that no descriptor table holds the widest
// mode that one of its mappings was made with.  Changes nothing in a set that ferry wrote.
void widen_mapped_files(image::Set& set);

}  // namespace ferry::state
