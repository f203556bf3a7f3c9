// The destination's side of a move: `ferry receive`.
#pragma once

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

// Serves one source over a pair of descriptors, until it has what it wanted or has gone away.
// What goes wrong is told to the source; errors are only those that it could not be told.  Unless the
// tree was taken, nothing is left then.
// Starts a guard process, so the caller must have a single thread; blocks SIGCHLD and ignores SIGPIPE.
Result<void> receive(UniqueFd in, UniqueFd out);

}  // namespace ferry::migrate
