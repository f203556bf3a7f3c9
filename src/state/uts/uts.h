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

}  // namespace ferry::state::uts
