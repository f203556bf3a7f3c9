// Which namespaces the tree lives in, as numbers of the images.
//
// One counter for all kinds; the dumper's own namespaces come first and stand in inventory.root_ids,
// so "the root task's number differs from the dumper's" means: to be made anew on restore.
// Source: namespaces(7); docs/images.md.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "image/set.h"
#include "state/dump.h"

namespace ferry::state {

enum class NsKind : std::uint8_t { pid, net, ipc, uts, time, mnt, user, cgroup };
inline constexpr std::size_t kNsKinds = 8;
// In the order in which numbers are given out.
inline constexpr std::array<NsKind, kNsKinds> kAllNsKinds{NsKind::pid,  NsKind::net, NsKind::ipc,  NsKind::uts,
                                                          NsKind::time, NsKind::mnt, NsKind::user, NsKind::cgroup};
// "pid", "net", … as in /proc/PID/ns.
std::string_view ns_name(NsKind kind);
// CLONE_NEW*.
std::uint64_t ns_clone_flag(NsKind kind);

// Inodes by kind.
using NsInodes = std::array<std::uint64_t, kNsKinds>;
// Of the process that calls.
Result<NsInodes> own_namespaces();

// Fills the namespace numbers of every task's ids and of inventory.root_ids.
// Tasks may have other network, mount, uts, ipc, cgroup and time namespaces than the root of their tree.
// Errors: unsupported, for what neither CRIU nor ferry carries: other kinds that differ within the tree, pid
// namespaces chosen for children that are not yet born, and a user namespace without a pid namespace.
Result<void> collect_ids(DumpContext& context);

// Refuses a task one of whose threads has moved on its own (setns(2), unshare(2)): nothing in the images
// could say so.  Only reads procfs, so it may run beside everything else.
Result<void> check_threads(const DumpTask& task);

// The namespaces of the root task, as a set has them; for both directions.
struct NamespaceIds {
  std::array<std::uint32_t, kNsKinds> root{};  // 0: the set does not say
  std::array<std::uint32_t, kNsKinds> dumper{};

  // Errors: corrupt (the set has no inventory, tree or ids).
  static Result<NamespaceIds> of(const image::Set& set);
  [[nodiscard]] std::uint32_t id(NsKind kind) const { return root[static_cast<std::size_t>(kind)]; }
  // Whether the tree had a namespace of its own.
  [[nodiscard]] bool is_new(NsKind kind) const {
    const auto k = static_cast<std::size_t>(kind);
    return root[k] != 0 && root[k] != dumper[k];
  }
  // CLONE_NEW* of all kinds that are new, for the root skeleton: without the time namespace, which
  // clone(2) does not make for the child itself, and without the cgroup namespace, whose root would be
  // wherever the cloning process stands.
  [[nodiscard]] std::uint64_t clone_flags() const;
};

// A namespace of the tree that is not the dumper's, with a task that lives in it.
struct TreeNamespace {
  std::uint32_t id = 0;
  DumpTask* task = nullptr;
};
// Each one once, that of the root task first if it is among them.
std::vector<TreeNamespace> tree_namespaces(const DumpContext& context, NsKind kind);

// The numbers of a kind that a set has beside the dumper's own, in the order of the tree.
Result<std::vector<std::uint32_t>> new_namespaces(const image::Set& set, NsKind kind);
// The namespace of a task of a set; 0 if the set does not say.
std::uint32_t namespace_of(const pb::TaskKobjIdsEntry& ids, NsKind kind);
// What it was known by where the set was made: the same in every set of one tree.  0 if the set does not say.
std::uint64_t inode_of(const image::Set& set, std::uint32_t id);

// The inode of a namespace of a task; `pid` may be a thread's.  Errors: gone.
Result<std::uint64_t> namespace_inode(HostPid pid, std::string_view name);

// "KIND[ID]:KEY" of options.external; the key for an id, e.g. external_key(options, "net", "4026532181").
std::optional<std::string> external_key(const CommonOptions& options, std::string_view kind, std::string_view id);

}  // namespace ferry::state
