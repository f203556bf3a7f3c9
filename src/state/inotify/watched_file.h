// From what the kernel tells of a watched file (device, inode, handle) to its path.
#pragma once

#include <string>

#include "state/inotify/inotify.h"

namespace ferry::state::inotify {

// Its path, as the task sees it.  By its handle, where the filesystem can open by handle, otherwise
// by looking at every file on it that the task can see.
// Errors: unsupported, if it has no name that the task could use any more.
Result<std::string> find_path(const DumpTask& task, const InotifyWatch& watch, const std::string& subject);

}  // namespace ferry::state::inotify
