// Files of a tree that are on mounts which the tree does not have.
#pragma once

#include "base/error.h"
#include "state/dump.h"

namespace ferry::state {

// A tree with a mount namespace of its own may hold files that were opened elsewhere and passed in (a log
// file of the host as standard output).  Their path means another file, or none, inside; so the checkpoint
// refuses them.  To be called when files.img and mountpoints-N.img are complete.
// Errors: unsupported (naming process, descriptor and path).
Result<void> check_files_are_inside(DumpContext& context);

}  // namespace ferry::state
