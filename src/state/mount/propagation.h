// Peer groups and masters.  Source: Documentation/filesystems/sharedsubtree.rst.
#pragma once

#include <functional>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/mount.pb.h"

namespace ferry::state::mount {

struct Placed {
  const pb::MntEntry* entry = nullptr;
  int mount = -1;
  // It is a clone of a mount outside of the tree, and has that one's master.
  bool from_outside = false;
  // It has been made a peer of a mount outside of the tree again.
  bool joined = false;
};

// Whether it has a master outside of the tree that it does not bring along itself; and who does.
bool needs_donor(const Placed& placed, const std::vector<Placed>& all);
const Placed* donor_of(const Placed& placed, const std::vector<Placed>& all);

// When all mounts of all mount namespaces are in place: the groups that the image has by number.
// `whole`: a private mount of the whole filesystem of an entry, attached somewhere for the time being.
Result<void> restore_propagation(const std::vector<Placed>& mounts,
                                 const std::function<Result<int>(const pb::MntEntry&)>& whole);

}  // namespace ferry::state::mount
