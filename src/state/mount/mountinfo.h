// /proc/PID/mountinfo, and the words in it as mount(2) flags.  Source: proc_pid_mountinfo(5).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::state::mount {

struct Line {
  int id = 0, parent = 0;
  std::uint32_t dev = 0;                 // kernel style: major << 20 | minor
  std::string root;                      // path inside the filesystem
  std::string mountpoint;                // as seen from the root directory of the process
  std::uint32_t flags = 0;               // MS_*, propagation included
  std::uint32_t shared = 0, master = 0;  // peer groups, 0: none
  std::string type;                      // "ext4", "fuse.sshfs"
  std::string source;
  std::uint32_t superblock_flags = 0;  // MS_*
  std::string options;                 // of the superblock, without what superblock_flags says
};

Result<std::vector<Line>> parse_mountinfo(std::string_view text);

// Whether `path` is `directory` or below it.  Both absolute, without a trailing slash but for "/".
bool is_below(std::string_view path, std::string_view directory);
// The part of `path` below `directory`, without a leading slash; `path` has to be below it.
std::string relative_to(std::string_view path, std::string_view directory);

// The order in which mounts have to be made one after the other so that each lands on its parent although
// it is addressed by its path: parents first, and of the mounts on one parent the deeper path first,
// because a mount on /a hides /a/b below it.  Taken backwards it is an order for taking them down.
// Errors: corrupt, for parents in a circle or more than one root.
struct Place {
  int id = 0, parent = 0;
  std::string mountpoint;
};
Result<std::vector<std::size_t>> mount_order(const std::vector<Place>& places);

}  // namespace ferry::state::mount
