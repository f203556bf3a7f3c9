// What changed in a writable layer since it was copied the first time, while its container ran.
//
// The first copy may be torn: files are written while they are read.  Two looks at the directory, one
// before that copy and one with the container frozen, tell what has to be sent again.  The kernel
// stamps ctime on every change of a file or of its attributes, and no program can set it; only stores
// through a shared mapping are not stamped one by one, so mapped files are named by the caller.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::container {

struct LayerFile {
  std::uint64_t ino = 0;
  std::int64_t size = 0;
  std::int64_t ctime_ns = 0;
  std::uint32_t mode = 0;
  std::uint32_t links = 1;
  bool whiteout = false;
  bool opaque = false;
};
struct LayerLook {
  std::map<std::string, LayerFile> files;  // by path relative to the layer, without "."
  std::int64_t begun_ns = 0;               // CLOCK_REALTIME_COARSE, which ctime is taken from
};
Result<LayerLook> look_at_layer(const std::string& upper_dir);
// The same for one path and, where `below`, for what is below it.  Nothing, if there is no such path.
Result<LayerLook> look_at_path(const std::string& upper_dir, const std::string& path, bool below);

struct LayerDelta {
  std::vector<std::string> removed;  // to be removed from the container's view, with what is below
  std::vector<std::string> changed;  // to be sent; parents before children
  [[nodiscard]] bool empty() const { return removed.empty() && changed.empty(); }
};
// `mapped` are files that a program may have changed without a stamp.
LayerDelta compare_layers(const LayerLook& before, const LayerLook& now, const std::set<std::string>& mapped);

// Files that processes of a cgroup map shared and writable; relative to the container's root.
Result<std::set<std::string>> mapped_files(const std::string& cgroup);

// Removes paths below a mounted root.  Nothing outside of it is reached, whatever links it holds.
Result<void> remove_paths(const std::string& root, const std::vector<std::string>& paths);

}  // namespace ferry::container
