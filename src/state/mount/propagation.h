// Peer groups and masters.  Source: Documentation/filesystems/sharedsubtree.rst.
#pragma once

#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/mount.pb.h"

namespace ferry::state::mount {

// When all mounts are in place: groups within the tree, as the image has them by number.  A master
// outside of the tree came with the clone of its mount and stays.
// `made`: a descriptor of each mount, none for those that do not exist yet; `root` that of entry `root_index`.
Result<void> restore_propagation(const std::vector<const pb::MntEntry*>& entries, const std::vector<UniqueFd>& made,
                                 int root, std::size_t root_index);

}  // namespace ferry::state::mount
