// Checkpoint: a running tree of processes into an image set.
#pragma once

#include "base/error.h"
#include "engine/keeper.h"
#include "engine/options.h"

namespace ferry::engine {

// Saves the tree whose root is options.pid into options.images_dir.
//
// On success the tree is gone, or runs on (leave_running), or is stopped (leave_stopped).
// On any error it runs on as before and nothing of ours is left in it; so it does if this process
// is killed at any point, because ptrace(2) lets go of everything that its tracer held.
// What cannot be carried is refused with Kind::unsupported, by process and descriptor or mapping,
// before anything is stopped where that can be known, and always before anything is changed.
Result<DumpReport> checkpoint(const DumpOptions& options, Listener& listener);
// The same, kept elsewhere than in a directory; options.images_dir is not looked at.
Result<DumpReport> checkpoint(const DumpOptions& options, Listener& listener, Keeper& keeper);

}  // namespace ferry::engine
