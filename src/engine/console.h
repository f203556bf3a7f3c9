// The terminal of a container whose restore is answered before its tree is there.
//
// The runtime wants the master of the container's console while it restores.  So the skeleton opens the
// pair, and keeps a master and a slave of it until the tree is built: without an open slave whoever
// reads the master would find it hung up (EIO).
#pragma once

#include <vector>

#include "base/error.h"
#include "engine/options.h"
#include "state/restore.h"

namespace ferry::engine {

// Makes every terminal of the set whose master was outside of the tree, in the root skeleton, and hands
// the masters to the listener (Stage::orphan_pts_master).  The value names the descriptors that the
// skeleton has to keep, with the keys by which the tty room finds them again.
Result<std::vector<InheritFd>> make_consoles(state::RestoreContext& context);

}  // namespace ferry::engine
