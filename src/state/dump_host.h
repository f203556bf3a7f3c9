// What a dump looks with: a foot in the tree's namespaces, and this host's mounts and cgroup hierarchies.
//
// All of it is had before the tree is stopped, because a thread that joins namespaces, a long mountinfo and
// a dozen hierarchies would otherwise be part of the freeze.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "state/cgroup/tree.h"
#include "state/inside.h"
#include "state/ipc/undo.h"
#include "state/mount/mountinfo.h"
#include "state/mqueue/queues.h"
#include "state/nsids/networks.h"
#include "state/timens/clocks.h"

namespace ferry::state {

class DumpHost {
 public:
  // Before the freeze.  `cgroups`: whether groups are going to be looked at; `yard`: where their hierarchies are
  // mounted, empty: where they are found.
  Result<void> prepare(HostPid root, bool cgroups, const std::string& yard);
  // Before the freeze, of any task of the tree: joins its namespaces, so that inside_of() need not.
  Result<void> expect(HostPid pid);
  // In the freeze: whether the root task is still where it was; if it has moved meanwhile, follows it.
  Result<void> settle(HostPid root);

  // Our own, by kind (state/nsids/nsids.h).
  [[nodiscard]] const std::array<std::uint64_t, 8>& own_namespaces() const { return own_namespaces_; }

  // In the network, uts, ipc, mount and cgroup namespace of the root task, as far as these differ from ours,
  // and in the root directory of that mount namespace.  What runs there may not change them.
  Inside& inside() { return inside_; }
  // The same for any task of the tree.
  Result<Inside*> inside_of(HostPid pid);
  // As inside(), but in that network namespace.
  Result<Inside*> inside_network(HostPid root, int ns);
  Networks& networks() { return networks_; }
  // Of the ipc namespace that inside() is in.
  mqueue::Queues& queues() { return queues_; }
  ipc::Undos& undos() { return undos_; }
  // A file below /proc of the thread that calls, which may be inside and then has another /proc, or none.
  Result<std::string> read_of_thread(const std::string& path) const;
  // Our own mountinfo.
  [[nodiscard]] const std::vector<mount::Line>& mounts() const { return mounts_; }
  Result<const cgroup::Hierarchy*> hierarchy(const std::string& name);
  [[nodiscard]] const timens::Host& clocks() const { return clocks_; }

  // Closing a mount that is attached nowhere waits for a grace period of the kernel (namespace_unlock in
  // fs/namespace.c), milliseconds that belong after the freeze.
  void keep(UniqueFd mount) { kept_.push_back(std::move(mount)); }

 private:
  using Place = std::array<std::uint64_t, 5>;  // inodes of the namespaces
  static Result<Place> place_of(const std::string& proc);

  Place own_, entered_;
  std::array<std::uint64_t, 8> own_namespaces_{};
  Inside inside_;
  std::map<Place, std::unique_ptr<Inside>> others_;
  std::vector<std::unique_ptr<Inside>> in_networks_;
  Networks networks_;
  mqueue::Queues queues_;
  ipc::Undos undos_;
  UniqueFd proc_;
  std::string yard_;
  std::vector<mount::Line> mounts_;
  timens::Host clocks_;
  std::map<std::string, cgroup::Hierarchy> hierarchies_;
  std::vector<UniqueFd> kept_;
};

}  // namespace ferry::state
