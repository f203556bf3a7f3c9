#include "state/nsids/nsids.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <utility>

#include "image/proto/inventory.pb.h"
#include "state/dump_host.h"
#include "state/userns/userns.h"
#include "sys/file.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080  // clone3(2), Linux 5.6
#endif

namespace ferry::state {
namespace {

std::size_t index_of(NsKind kind) { return static_cast<std::size_t>(kind); }

Result<std::uint64_t> inode_at(int proc, const std::string& path, const std::string& subject) {
  struct stat st;
  if (::fstatat(proc, path.c_str(), &st, 0) != 0) {
    return sys_fail(fmt::format("stat({} {})", subject, path));
  }
  return static_cast<std::uint64_t>(st.st_ino);
}

Result<NsInodes> inodes_at(int proc, const std::string& prefix, const std::string& subject) {
  NsInodes out{};
  for (const NsKind kind : kAllNsKinds) {
    FERRY_TRY(out[index_of(kind)], inode_at(proc, fmt::format("{}ns/{}", prefix, ns_name(kind)), subject));
  }
  return out;
}

void put(pb::TaskKobjIdsEntry& ids, NsKind kind, std::uint32_t id) {
  switch (kind) {
    case NsKind::pid:
      return ids.set_pid_ns_id(id);
    case NsKind::net:
      return ids.set_net_ns_id(id);
    case NsKind::ipc:
      return ids.set_ipc_ns_id(id);
    case NsKind::uts:
      return ids.set_uts_ns_id(id);
    case NsKind::time:
      return ids.set_time_ns_id(id);
    case NsKind::mnt:
      return ids.set_mnt_ns_id(id);
    case NsKind::user:
      return ids.set_user_ns_id(id);
    case NsKind::cgroup:
      return ids.set_cgroup_ns_id(id);
  }
}

std::uint32_t get(const pb::TaskKobjIdsEntry& ids, NsKind kind) {
  switch (kind) {
    case NsKind::pid:
      return ids.pid_ns_id();
    case NsKind::net:
      return ids.net_ns_id();
    case NsKind::ipc:
      return ids.ipc_ns_id();
    case NsKind::uts:
      return ids.uts_ns_id();
    case NsKind::time:
      return ids.time_ns_id();
    case NsKind::mnt:
      return ids.mnt_ns_id();
    case NsKind::user:
      return ids.user_ns_id();
    case NsKind::cgroup:
      return ids.cgroup_ns_id();
  }
  return 0;
}

bool may_differ(NsKind kind) { return kind != NsKind::pid && kind != NsKind::user; }

// A process may have chosen another namespace for its future children: nothing in the images could say so.
Result<void> check_pid_for_children(const DumpTask& task, std::uint64_t own) {
  const Result<std::uint64_t> children = inode_at(task.proc.get(), "ns/pid_for_children", task.subject());
  // It cannot be followed before the first child exists (pid_namespaces(7)).
  if (!children.has_value() || *children != own) {
    return fail(
        Kind::unsupported,
        "{} has chosen another pid namespace for its future children (unshare or setns), which cannot be carried",
        task.subject());
  }
  return {};
}

// Of a time namespace it can: it is made by the unshare(2) of who chose it.
Result<void> check_chooser(const DumpTask& task, const DumpTask* other) {
  if (other != nullptr) {
    return fail(Kind::unsupported,
                "{} and {} have chosen the same time namespace for their future children, and live in another one",
                other->subject(), task.subject());
  }
  if (task.threads.size() > 1) {
    // clone(2) makes no thread then, so it would have to be chosen after all threads and before all children.
    return fail(Kind::unsupported,
                "{} has several threads and has chosen another time namespace for its future children", task.subject());
  }
  return {};
}

pb::InventoryEntry& inventory_of(image::Set& set) {
  const image::Name name{image::Type::inventory, 0};
  if (!set.has(name) || set.entries(name).empty()) {
    pb::InventoryEntry fresh;
    fresh.set_img_version(2);
    set.add(name, std::move(fresh));
  }
  return static_cast<pb::InventoryEntry&>(*set.entries(name).front().message);
}

}  // namespace

std::string_view ns_name(NsKind kind) {
  switch (kind) {
    case NsKind::pid:
      return "pid";
    case NsKind::net:
      return "net";
    case NsKind::ipc:
      return "ipc";
    case NsKind::uts:
      return "uts";
    case NsKind::time:
      return "time";
    case NsKind::mnt:
      return "mnt";
    case NsKind::user:
      return "user";
    case NsKind::cgroup:
      return "cgroup";
  }
  return "";
}

std::uint64_t ns_clone_flag(NsKind kind) {
  switch (kind) {
    case NsKind::pid:
      return CLONE_NEWPID;
    case NsKind::net:
      return CLONE_NEWNET;
    case NsKind::ipc:
      return CLONE_NEWIPC;
    case NsKind::uts:
      return CLONE_NEWUTS;
    case NsKind::time:
      return CLONE_NEWTIME;
    case NsKind::mnt:
      return CLONE_NEWNS;
    case NsKind::user:
      return CLONE_NEWUSER;
    case NsKind::cgroup:
      return CLONE_NEWCGROUP;
  }
  return 0;
}

Result<std::uint64_t> namespace_inode(HostPid pid, std::string_view name) {
  return inode_at(AT_FDCWD, fmt::format("/proc/{}/ns/{}", pid, name), fmt::format("pid {}", pid));
}

Result<NsInodes> own_namespaces() {
  FERRY_TRY(const UniqueFd self, sys::open("/proc/self", O_PATH | O_DIRECTORY));
  return inodes_at(self.get(), "", "this process");
}

Result<void> collect_ids(DumpContext& context) {
  const NsInodes& own = context.host.own_namespaces();
  pb::TaskKobjIdsEntry& root_ids = *inventory_of(context.set).mutable_root_ids();
  std::uint32_t last = 0;
  for (const NsKind kind : kAllNsKinds) {
    put(root_ids, kind, ++last);
  }
  // CRIU numbers its own objects first as well.
  for (const auto set : {&pb::TaskKobjIdsEntry::set_vm_id, &pb::TaskKobjIdsEntry::set_files_id,
                         &pb::TaskKobjIdsEntry::set_fs_id, &pb::TaskKobjIdsEntry::set_sighand_id}) {
    (root_ids.*set)(1);
  }

  std::optional<NsInodes> root;
  std::map<std::pair<NsKind, std::uint64_t>, std::uint32_t> known;
  for (const NsKind kind : kAllNsKinds) {
    known.emplace(std::pair(kind, own[index_of(kind)]), get(root_ids, kind));
  }
  const auto number = [&](NsKind kind, std::uint64_t inode) {
    const auto [at, is_new] = known.emplace(std::pair(kind, inode), last + 1);
    if (is_new) {
      ++last;
      pb::FerryNamespace& entry = *inventory_of(context.set).add_ferry_namespaces();
      entry.set_id(last);
      entry.set_inode(inode);
    }
    return at->second;
  };
  std::map<std::uint64_t, const DumpTask*> choosers;  // of a time namespace for children
  for (const auto& task : context.tasks) {
    if (task->zombie || task->ids == nullptr) {
      continue;  // its namespaces are gone with it
    }
    FERRY_TRY(const NsInodes inodes, inodes_at(task->proc.get(), "", task->subject()));
    if (!root.has_value()) {
      root = inodes;
    }
    for (const NsKind kind : kAllNsKinds) {
      const std::uint64_t inode = inodes[index_of(kind)];
      if (inode != (*root)[index_of(kind)] && !may_differ(kind)) {
        return fail(Kind::unsupported,
                    "{} has another {} namespace than the root of its tree ({}); a tree has to share one",
                    task->subject(), ns_name(kind), context.root().subject());
      }
      if (inode == own[index_of(kind)] && inode != (*root)[index_of(kind)] && kind != NsKind::time) {
        return fail(Kind::unsupported,
                    "{} lives in the {} namespace of this host, and the root of its tree ({}) does not",
                    task->subject(), ns_name(kind), context.root().subject());
      }
      put(*task->ids, kind, number(kind, inode));
    }
    FERRY_CHECK(check_pid_for_children(*task, inodes[index_of(NsKind::pid)]));
    const auto children = inode_at(task->proc.get(), "ns/time_for_children", task->subject());
    if (children.has_value() && *children != inodes[index_of(NsKind::time)]) {
      const DumpTask*& chooser = choosers[*children];
      FERRY_CHECK(check_chooser(*task, chooser));
      chooser = task.get();
      task->ids->set_ferry_time_for_children_ns_id(number(NsKind::time, *children));
    }
  }
  const auto is_new = [&](NsKind kind) { return (*root)[index_of(kind)] != own[index_of(kind)]; };
  if (!is_new(NsKind::user)) {
    return {};
  }
  if (!is_new(NsKind::pid)) {
    // There its processes could not be given their numbers again: that takes privileges over the pid
    // namespace (clone(2), set_tid).
    return fail(Kind::unsupported, "{} lives in a user namespace of its own, but not in a pid namespace of its own",
                context.root().subject());
  }
  return userns::collect(context);
}

Result<void> check_threads(const DumpTask& task) {
  if (task.threads.size() < 2) {
    return {};
  }
  FERRY_TRY(const NsInodes inodes, inodes_at(task.proc.get(), "", task.subject()));
  for (const DumpThread& thread : task.threads) {
    if (thread.tid == task.pid || !task.asks(thread)) {
      continue;
    }
    for (const NsKind kind : {NsKind::net, NsKind::ipc, NsKind::uts, NsKind::mnt, NsKind::cgroup}) {
      FERRY_TRY(const std::uint64_t inode,
                inode_at(task.proc.get(), fmt::format("task/{}/ns/{}", thread.tid, ns_name(kind)), task.subject()));
      if (inode != inodes[index_of(kind)]) {
        return fail(Kind::unsupported, "thread {} of {} has a {} namespace of its own, which cannot be carried",
                    thread.tid, task.subject(), ns_name(kind));
      }
    }
  }
  return {};
}

std::vector<TreeNamespace> tree_namespaces(const DumpContext& context, NsKind kind) {
  const std::uint32_t own = get(inventory_of(context.set).root_ids(), kind);
  std::vector<TreeNamespace> out;
  for (const auto& task : context.tasks) {
    const std::uint32_t id = task->zombie || task->ids == nullptr ? 0 : get(*task->ids, kind);
    const bool known = std::any_of(out.begin(), out.end(), [&](const TreeNamespace& n) { return n.id == id; });
    if (id != 0 && id != own && !known) {
      out.push_back({id, task.get()});
    }
  }
  return out;
}

Result<std::vector<std::uint32_t>> new_namespaces(const image::Set& set, NsKind kind) {
  FERRY_TRY(const auto* inventory, set.one<pb::InventoryEntry>({image::Type::inventory, 0}));
  const std::uint32_t own = get(inventory->root_ids(), kind);
  std::vector<std::uint32_t> out;
  for (const auto* entry : set.list<pb::PstreeEntry>({image::Type::pstree, 0})) {
    for (const auto* ids : set.list<pb::TaskKobjIdsEntry>({image::Type::ids, entry->pid()})) {
      const std::uint32_t id = get(*ids, kind);
      if (id != 0 && id != own && std::find(out.begin(), out.end(), id) == out.end()) {
        out.push_back(id);
      }
    }
  }
  if (kind == NsKind::net) {  // those that only sockets are in (networks.h)
    for (const image::Name& name : set.names(image::Type::netns)) {
      const auto id = static_cast<std::uint32_t>(name.id);
      if (id != own && std::find(out.begin(), out.end(), id) == out.end()) {
        out.push_back(id);
      }
    }
  }
  return out;
}

std::uint32_t namespace_of(const pb::TaskKobjIdsEntry& ids, NsKind kind) { return get(ids, kind); }

std::uint64_t inode_of(const image::Set& set, std::uint32_t id) {
  for (const auto* inventory : set.list<pb::InventoryEntry>({image::Type::inventory, 0})) {
    for (const pb::FerryNamespace& entry : inventory->ferry_namespaces()) {
      if (entry.id() == id) {
        return entry.inode();
      }
    }
  }
  return 0;
}

Result<NamespaceIds> NamespaceIds::of(const image::Set& set) {
  FERRY_TRY(const auto* inventory, set.one<pb::InventoryEntry>({image::Type::inventory, 0}));
  const auto tree = set.list<pb::PstreeEntry>({image::Type::pstree, 0});
  if (tree.empty()) {
    return fail(Kind::corrupt, "pstree.img is missing or empty");
  }
  FERRY_TRY(const auto* ids, set.one<pb::TaskKobjIdsEntry>({image::Type::ids, tree.front()->pid()}));
  NamespaceIds out;
  for (const NsKind kind : kAllNsKinds) {
    out.root[index_of(kind)] = get(*ids, kind);
    out.dumper[index_of(kind)] = get(inventory->root_ids(), kind);
  }
  return out;
}

std::uint64_t NamespaceIds::clone_flags() const {
  std::uint64_t flags = 0;
  for (const NsKind kind : kAllNsKinds) {
    if (is_new(kind) && kind != NsKind::time && kind != NsKind::cgroup) {
      flags |= ns_clone_flag(kind);
    }
  }
  return flags;
}

std::optional<std::string> external_key(const CommonOptions& options, std::string_view kind, std::string_view id) {
  const std::string prefix = fmt::format("{}[{}]:", kind, id);
  for (const std::string& external : options.external) {
    if (external.starts_with(prefix)) {
      return external.substr(prefix.size());
    }
  }
  return std::nullopt;
}

}  // namespace ferry::state
