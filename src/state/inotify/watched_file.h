// From what the kernel tells of a watched file (device, inode, handle) to its path.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "state/inotify/inotify.h"

namespace ferry::state::inotify {

struct Found {
  std::string path;   // as the task sees it
  UniqueFd nameless;  // the file itself, if no path leads to it any more; `path` then ends in " (deleted)"
  bool gone = false;  // there is no such file any more, and nothing can happen to it; `path` is empty
};

// Looks by the file's handle, where the filesystem can open by handle, otherwise at every file on it that the
// task can see (overlayfs cannot, as a rule).  That takes long, so it is done before the freeze; in the freeze a
// look whether the path still leads there is enough.  What it learns of a mount namespace serves all watches.
class PathFinder {
 public:
  // `proc`: /proc/PID of a task that has the watch.  Errors: unsupported, if there is no such file any more.
  Result<Found> find(int proc, const InotifyWatch& watch, const std::string& subject);

  // Where the mount with that id is, as fanotify's fdinfo has it (proc_pid_fdinfo(5)).  Errors: unsupported.
  Result<std::string> mountpoint(int proc, int id, const std::string& subject);
  // A mount of the filesystem with that device number.
  Result<std::string> mountpoint_of(int proc, std::uint32_t device, const std::string& subject);

 private:
  struct Mount {
    int id;
    std::uint32_t dev;  // kernel style
    std::string mountpoint;
    UniqueFd top;
  };
  struct View {
    UniqueFd root;
    std::vector<Mount> mounts;
    std::map<std::pair<std::uint32_t, std::uint64_t>, std::string> paths;  // by device and inode
  };
  Result<View*> view_of(int proc);

  std::map<ino_t, View> views_;  // by mount namespace
};

}  // namespace ferry::state::inotify
