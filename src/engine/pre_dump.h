// Pre-dump: the memory of a tree while it runs, so that the checkpoint that follows has little left to save.
#pragma once

#include "base/error.h"
#include "engine/options.h"

namespace ferry::engine {

// Saves the pages of the tree whose root is options.pid into options.images_dir; those that the parent set
// has already (options.parent_images) are left to it.  Each process stops only for the instant in which its
// tracking begins.  What the programs write from then on is known to the next pre-dump or dump that names
// this set as its parent.
// Errors: gone, denied (somebody traces the root), unsupported (kernel, a frozen cgroup).
Result<DumpReport> pre_dump(const DumpOptions& options);

}  // namespace ferry::engine
