// A checkpoint of nothing, to have the real one run warm.
#pragma once

#include "engine/options.h"

namespace ferry::engine {

// Takes a child of our own, which only waits, through the whole checkpoint into memory and ends it.  What a
// first run costs (code and tables read in page by page, the heap grown, slabs of the kernel filled) is then
// paid while the user's tree still runs: it is a good part of the frozen time of a small one.
// Nothing depends on its success.
void rehearse(const DumpOptions& options);

// Has the kernel make its objects for the files of /proc/PID that a checkpoint reads: the first look at
// each costs several times what later ones do.  `with_look`: there is one (sys/task_look.h) for many threads.
void warm_procfs(HostPid pid, bool with_look);

}  // namespace ferry::engine
