// What a dump looks with: a foot in the tree's namespaces, and this host's mounts and cgroup hierarchies.
//
// All of it is had before the tree is stopped, because a thread that joins namespaces, a long mountinfo and
// a dozen hierarchies would otherwise be part of the freeze.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "state/cgroup/tree.h"
#include "state/inside.h"
#include "state/mount/mountinfo.h"

namespace ferry::state {

class DumpHost {
 public:
  // Before the freeze.  `cgroups`: whether groups are going to be looked at.
  Result<void> prepare(HostPid root, bool cgroups);
  // In the freeze: whether the root task is still where it was; if it has moved meanwhile, follows it.
  Result<void> settle(HostPid root);

  // In the network, uts, ipc, mount and cgroup namespace of the root task and in its root directory, as far
  // as these differ from ours.  What runs there may not change them.
  Inside& inside() { return inside_; }
  // Our own mountinfo.
  [[nodiscard]] const std::vector<mount::Line>& mounts() const { return mounts_; }
  Result<const cgroup::Hierarchy*> hierarchy(const std::string& name);

  // Closing a mount that is attached nowhere waits for a grace period of the kernel (namespace_unlock in
  // fs/namespace.c), milliseconds that belong after the freeze.
  void keep(UniqueFd mount) { kept_.push_back(std::move(mount)); }

 private:
  struct Place {
    std::array<std::uint64_t, 5> namespaces{};
    std::uint64_t device = 0, inode = 0, mount = 0;  // of the root directory
    bool operator==(const Place&) const = default;
  };
  static Result<Place> place_of(const std::string& proc);

  Place own_, entered_;
  Inside inside_;
  std::vector<mount::Line> mounts_;
  std::map<std::string, cgroup::Hierarchy> hierarchies_;
  std::vector<UniqueFd> kept_;
};

}  // namespace ferry::state
