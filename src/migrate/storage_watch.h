// Which files of some directories have been changed: asked of the kernel instead of looked for.
//
// fanotify(7) on the filesystems that hold the directories, by name and by the handle of the parent
// (FAN_REPORT_DFID_NAME, since 5.9).  A write through an overlay is heard on its upper filesystem by some kernels only,
// so that is tried before it is relied on.  Not heard: stores through shared mappings, which others have to name. State
// one object per move; the queue is the kernel's, and what does not fit into it makes everything count as changed
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

class StorageWatch {
 public:
  struct Place {
    std::string directory;
    bool overlay = false;  // it is the upper directory of a mounted overlay
  };
  // Errors: unsupported, where the kernel does not tell.
  static Result<StorageWatch> begin(const std::vector<Place>& places);

  // Names that were heard since the last time, by the number of their place; relative, "." for the place itself.
  // Nothing: the queue ran over, or a name could not be told, so all may have changed.
  Result<std::optional<std::vector<std::set<std::string>>>> heard();

 private:
  struct Watched {
    UniqueFd root;                 // open on the directory
    std::string path;              // as the kernel prints it
    std::uint64_t filesystem = 0;  // f_fsid
  };
  StorageWatch() = default;
  Result<void> read_event(const char* event, std::vector<std::set<std::string>>& out);
  static void add(const std::string& top, const std::string& directory, const std::string& name,
                  std::set<std::string>& out);

  UniqueFd queue_;
  std::vector<Watched> watched_;
  // Paths of directories by place and handle, for one call of heard().
  std::map<std::pair<std::size_t, std::string>, std::string> known_;
};

}  // namespace ferry::migrate
