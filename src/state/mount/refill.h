// The tmpfs of a tree that was made ahead of time, when their content has changed since.
#pragma once

#include "base/error.h"
#include "base/ids.h"
#include "image/set.h"

namespace ferry::state::mount {

// `root`: the skeleton of the tree, whose tmpfs were filled from `before`.  Empties those of them that `now`
// describes otherwise and fills them again; no task may have anything open in there yet.
// Errors: unsupported for one that is not to be seen as a whole at one place of the tree's mount namespace.
Result<void> refill_tmpfs(HostPid root, const image::Set& before, const image::Set& now);

}  // namespace ferry::state::mount
