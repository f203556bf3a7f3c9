// The content of a tmpfs as a gzip-compressed tar, as CRIU keeps it: numeric owners, modes, times,
// extended attributes, hard links, holes and device nodes.
#pragma once

#include <sys/types.h>

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::state::mount {

// A socket in the filesystem, for which tar has no word.
struct Node {
  std::string path;  // "./a/b"
  mode_t mode = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};
struct Archived {
  std::string bytes;
  std::vector<Node> sockets;
};

// `root`: a directory; what is mounted below it is not looked at.
Result<Archived> archive_tree(int root);

// Into the current directory of the calling thread, which has to be the root of the filesystem (a thread with
// a file system context of its own: unshare(2), CLONE_FS).  `present`: what is there already and cannot be
// replaced; directories of the same name are used anyway.
Result<void> extract_here(std::string_view archive, const std::set<std::string>& present = {});
Result<void> make_sockets(int root, const std::vector<Node>& sockets);

}  // namespace ferry::state::mount
