// Control groups: which task stands where, and what its groups say.  Source: cgroups(7),
// Documentation/admin-guide/cgroup-v1/cgroups.rst, Documentation/admin-guide/cgroup-v2.rst.
//
// A set is one place in every hierarchy; tasks and threads name theirs by number, and number one is where
// the dumper stood: nothing is done for it on restore, as CRIU does.
#pragma once

#include "base/error.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::cgroup {

// Fills cgroup.img, the numbers in every thread's core, and inventory.root_cg_set.
Result<void> collect(DumpContext& context);

// Makes groups according to the mode, puts the root skeleton into its own, and gives it a cgroup namespace
// if it had one.  To be called before children are cloned and before mount::restore.
Result<void> restore_root(RestoreContext& context);
// The other tasks, with cgroup namespaces of their own, before they have threads.
Result<void> restore(RestoreContext& context);
// Threads that stand elsewhere than their leader.
Result<void> restore_threads(RestoreContext& context);

}  // namespace ferry::state::cgroup
