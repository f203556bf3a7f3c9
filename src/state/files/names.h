// Checkpoint: what to write down for a file so that it is found again.
//
// A file whose path leads to it is kept by that path.  One whose last name is gone goes into the images (a
// "ghost").  One that has names left, only not this one, gets a helper name beside it if --link-remap allows
// that; helper names disappear again with this object unless keep_links() was called.  Files of processes
// that are dead are known by the pid.
#pragma once

#include <sys/stat.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "state/dump.h"
#include "state/inside.h"

namespace ferry::state::files {

class Names {
 public:
  Names() = default;
  ~Names();
  Names(const Names&) = delete;
  Names& operator=(const Names&) = delete;

  // Fills name, mode, size and what else belongs to the file behind `ours` (O_PATH will do).  `link`: its
  // path as procfs shows it.  `out` has its id already.
  // Errors: unsupported, naming `subject`, for what has no way back.
  Result<void> describe(DumpContext& context, DumpTask& task, int ours, const struct stat& stat, std::string link,
                        const std::string& subject, pb::RegFileEntry& out);
  // The images are complete: helper names stay until they are restored.
  void keep_links() { links_.clear(); }

 private:
  using Inode = std::pair<dev_t, ino_t>;
  struct HelperLink {
    UniqueFd directory;
    std::string name;
  };

  // The root directory of the mount namespace of a task.
  Result<int> root_of(DumpTask& task);
  Result<bool> leads_to(DumpTask& task, const std::string& path, const struct stat& stat);
  Result<void> add_ghost(DumpContext& context, int ours, const struct stat& stat, const std::string& link,
                         const std::string& subject, std::uint32_t id);
  Result<void> add_helper_link(DumpContext& context, DumpTask& task, int ours, const struct stat& stat,
                               const std::string& link, const std::string& subject, pb::RegFileEntry& out);
  Result<std::string> link_beside(DumpTask& task, int ours, const std::string& link, std::uint32_t number,
                                  const std::string& subject);

  std::map<HostPid, int> root_of_task_;
  std::map<ino_t, UniqueFd> roots_;  // by mount namespace
  std::map<Inode, std::uint32_t> ghosts_;
  std::map<Inode, std::uint32_t> helpers_;  // file ids
  std::vector<HelperLink> links_;
};

}  // namespace ferry::state::files
