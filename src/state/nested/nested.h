// Restore: the namespaces of a tree beside those of its root task.
//
// Network, uts and ipc namespaces are made by the root skeleton, which leaves its own for a moment and returns (so
// they belong to the tree's user namespace), mount namespaces by mount::restore.  Here they are held, by
// descriptors of ours, until the tasks that lived in them have been put into them; rooms reach them by a
// thread inside (state/inside.h).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "state/inside.h"
#include "state/nsids/nsids.h"
#include "state/restore.h"

namespace ferry::state {

// One that a skeleton was made with, on its way to whoever will dress the tree.
struct HeldNamespace {
  NsKind kind = NsKind::mnt;
  std::uint64_t inode = 0;  // inode_of()
  UniqueFd fd;
};

class Nested {
 public:
  // For a restore ahead of time, which has one network namespace: refuses others by name.
  static Result<void> check_single_network(const image::Set& set);
  // Hands over what was made from this set; keeps none of them.
  std::vector<HeldNamespace> give(const image::Set& set);
  // Takes what was made from an earlier look at the tree, which stays the caller's.
  // Errors: unsupported, if a namespace has come since.
  Result<void> take(RestoreContext& context, const std::vector<HeldNamespace>& made);
  // Makes all network, uts and ipc namespaces that are not the root task's.  The root skeleton still has our mounts.
  Result<void> make(RestoreContext& context);
  // Makes one of a kind, or takes it: from whoever has it open.
  Result<void> make_one(RestoreContext& context, NsKind kind, std::uint32_t id);
  void put(NsKind kind, std::uint32_t id, UniqueFd ns) { held_.insert_or_assign({kind, id}, std::move(ns)); }
  // A descriptor of a namespace, owned here; -1 if it is the root task's or not of this set.
  [[nodiscard]] int fd(NsKind kind, std::uint32_t id) const;

  // Where the files and sockets of that namespace can be made: all namespaces of the root task but this one.
  // For the root task's own namespace, and for 0, context.inside.
  Result<Inside*> inside(RestoreContext& context, NsKind kind, std::uint32_t id);
  // Threads that stand in an old root are no good any more.
  void forget_insides() { insides_.clear(); }
  // For a socket, which may be in a network namespace that no task lives in, the dumper's among them.
  // Errors: unsupported, for a namespace that is not there.
  Result<Inside*> inside_network(RestoreContext& context, std::uint32_t id);
  // A descriptor of such a namespace.
  Result<UniqueFd> network(RestoreContext& context, std::uint32_t id) const;
  // Where sockets of the dumper's network namespace come back, if the tree has one of its own: ours.
  Result<void> hold_own_network(RestoreContext& context);
  // The same by the number of a mount of the set.
  Result<Inside*> inside_of_mount(RestoreContext& context, std::int64_t mount_id);

  // Puts every process into its namespaces, before its threads are made.  (Cgroup namespaces: cgroup::restore.)
  Result<void> enter(RestoreContext& context);

 private:
  std::map<std::pair<NsKind, std::uint32_t>, UniqueFd> held_;
  std::map<std::pair<NsKind, std::uint32_t>, std::unique_ptr<Inside>> insides_;
  std::map<std::int64_t, std::uint32_t> mounts_;  // mount of the set to mount namespace, those of the nested ones
  bool mounts_known_ = false;
};

}  // namespace ferry::state
