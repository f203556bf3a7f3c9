// Host name and NIS domain name: utsns-NS.img.  Source: uts_namespaces(7).
#pragma once

#include "base/error.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::uts {

// Nothing if the tree shares our UTS namespace.
Result<void> collect(DumpContext& context);
// The root skeleton has its UTS namespace.
Result<void> restore(RestoreContext& context);
// The names that have changed since an earlier look at the tree, with which its namespaces were made.
Result<void> renew(RestoreContext& context, const image::Set& before);

}  // namespace ferry::state::uts
