// The tmpfs of a tree that was made ahead of time, when their content has changed since.
#pragma once

#include "base/error.h"
#include "state/restore.h"

namespace ferry::state::mount {

// Empties those of the tree's own tmpfs that the set describes otherwise than `before`, from which they were filled,
// and fills them again; no task may have anything open in there yet.
// Errors: unsupported for one that is not to be seen as a whole anywhere in the tree's mount namespaces.
Result<void> refill_tmpfs(RestoreContext& context, const image::Set& before);

}  // namespace ferry::state::mount
