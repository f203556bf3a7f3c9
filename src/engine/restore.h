// Restore: an image set into a running tree of processes.
#pragma once

#include "base/error.h"
#include "engine/options.h"

namespace ferry::engine {

// Rebuilds the tree in options.images_dir and lets it run.
//
// On any error no process, mount, namespace or file of the attempt is left.  The root task's pid is
// reported through Listener (setup_namespaces, post_restore) before the tree runs.
Result<RestoreReport> restore(const RestoreOptions& options, Listener& listener);

}  // namespace ferry::engine
