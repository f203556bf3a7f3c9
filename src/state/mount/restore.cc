#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <vector>

#include "state/mount/fstype.h"
#include "state/mount/mount.h"
#include "state/mount/mountinfo.h"
#include "state/mount/propagation.h"
#include "state/mount/sources.h"
#include "state/nested/nested.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"
#include "sys/mount_api.h"

#ifndef MOUNT_ATTR_NOSYMFOLLOW
#define MOUNT_ATTR_NOSYMFOLLOW 0x00200000  // mount_setattr(2), Linux 5.14
#endif

namespace ferry::state::mount {
namespace {

std::string describe(const pb::MntEntry& entry) { return fmt::format("mount {}", entry.mountpoint()); }

Making making_of(const pb::MntEntry& entry) { return fs_kind(static_cast<pb::FsType>(entry.fstype())).making; }

// A terminal bound over a file: the terminal does not exist yet.
bool is_terminal_bind(const pb::MntEntry& entry) {
  return entry.fstype() == pb::FSTYPE_DEVPTS && entry.root() != "/" && !entry.has_ext_key();
}

// mount(2)'s flags of one mount, for mount_setattr(2).
Result<void> set_flags(int mount, std::uint32_t flags) {
  std::uint64_t set = 0;
  const auto add = [&](std::uint32_t ms, std::uint64_t attribute) { set |= (flags & ms) != 0 ? attribute : 0; };
  add(MS_RDONLY, MOUNT_ATTR_RDONLY);
  add(MS_NOSUID, MOUNT_ATTR_NOSUID);
  add(MS_NODEV, MOUNT_ATTR_NODEV);
  add(MS_NOEXEC, MOUNT_ATTR_NOEXEC);
  add(MS_NODIRATIME, MOUNT_ATTR_NODIRATIME);
  add(MS_NOATIME, MOUNT_ATTR_NOATIME);
  add(MS_STRICTATIME, MOUNT_ATTR_STRICTATIME);
  add(256 /* MS_NOSYMFOLLOW */, MOUNT_ATTR_NOSYMFOLLOW);
  constexpr std::uint64_t kAll = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC |
                                 MOUNT_ATTR_NODIRATIME | MOUNT_ATTR__ATIME | MOUNT_ATTR_NOSYMFOLLOW;
  return sys::set_mount_attributes(mount, set, kAll, 0);
}

Result<UniqueFd> open_directory(const std::string& path) { return sys::open(path, O_PATH | O_DIRECTORY); }

// What a mount at `rest` below its parent is attached to: not looked for behind what else is mounted there.
Result<UniqueFd> open_below(int parent, const std::string& rest) {
  open_how how{};
  how.flags = O_PATH | O_CLOEXEC | O_NOFOLLOW;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_XDEV;
  const std::string path = rest.empty() ? "." : rest;
  const long fd = ::syscall(SYS_openat2, parent, path.c_str(), &how, sizeof how);
  if (fd < 0) {
    return sys_fail(fmt::format("openat2({})", path));
  }
  return UniqueFd(static_cast<int>(fd));
}

// The file or directory to mount on, made if the path ends before it: a mount point that a runtime made
// in a layer of the image may be missing where the layers were copied.
Result<UniqueFd> open_mountpoint(int root, const std::string& path, bool directory) {
  auto found = open_below(root, path);
  if (found.has_value() || found.error().os_errno != ENOENT) {
    return found;
  }
  std::string done;
  std::string_view rest = path;
  for (;;) {
    rest.remove_prefix(std::min(rest.find_first_not_of('/'), rest.size()));
    const std::size_t end = std::min(rest.find('/'), rest.size());
    const std::string name(rest.substr(0, end));
    rest.remove_prefix(end);
    const bool last = rest.find_first_not_of('/') == std::string_view::npos;
    const std::string next = done.empty() ? name : done + "/" + name;
    if (const auto there = open_below(root, next); !there.has_value()) {
      FERRY_TRY(const UniqueFd parent, open_below(root, done));
      if (last && !directory) {
        FERRY_TRY(const UniqueFd file, sys::open_at(parent.get(), name, O_CREAT | O_EXCL | O_WRONLY, 0644));
      } else if (::mkdirat(parent.get(), name.c_str(), 0755) != 0) {
        return sys_fail(fmt::format("mkdir({})", next));
      }
    }
    if (last) {
      return open_below(root, path);
    }
    done = next;
  }
}

// The mounts of one mount namespace.
struct Tree {
  std::uint32_t id = 0;
  std::uint32_t net = 0;  // network namespace of a task that lives there
  std::vector<const pb::MntEntry*> entries;
  std::vector<std::size_t> order;    // mount_order
  std::vector<std::size_t> parents;  // entry to entry; the root's is its own
  std::vector<UniqueFd> made;        // for each entry; none for what comes later
  [[nodiscard]] std::size_t root_index() const { return order.front(); }
  [[nodiscard]] const pb::MntEntry& root() const { return *entries[root_index()]; }
};

// Everything here runs on the thread of context.inside, in the mount namespace of the root skeleton.
class Builder {
 public:
  Builder(RestoreContext& context, std::vector<Tree> trees)
      : context_(context), trees_(std::move(trees)), sources_(context, entries_of(trees_)) {}

  // On our own thread, before build().
  Result<void> prepare() {
    FERRY_CHECK(sources_.prepare());
    FERRY_TRY(host_root_, open_directory("/"));
    FERRY_TRY(host_proc_, open_directory("/proc"));
    return {};
  }

  Result<void> build() {
    FERRY_CHECK(prepare_stage());
    for (Tree& tree : trees_) {
      FERRY_CHECK(make_tree(tree));
    }
    FERRY_CHECK(sources_.finish());
    Tree& first = trees_.front();
    FERRY_CHECK(set_flags(first.made[first.root_index()].get(), first.root().flags()).during("mount /"));
    std::vector<Placed> placed;
    for (const Tree& tree : trees_) {
      for (std::size_t i = 0; i < tree.entries.size(); ++i) {
        if (tree.made[i]) {
          const bool tree_root = &tree == &first && i == tree.root_index();
          placed.push_back(
              {tree.entries[i], tree.made[i].get(), tree_root || !tree.entries[i]->ext_key().empty(), false});
        }
      }
    }
    FERRY_CHECK(join_outer_peers(placed));
    const auto whole = [&](const pb::MntEntry& entry) { return sources_.whole(entry, asker(first)); };
    FERRY_CHECK(restore_propagation(placed, whole));
    for (std::size_t i = 1; i < trees_.size(); ++i) {
      FERRY_CHECK(split_off(trees_[i]).during("mount namespace {}", trees_[i].id));
    }
    return pivot_first();
  }

 private:
  static std::vector<const pb::MntEntry*> entries_of(const std::vector<Tree>& trees) {
    std::vector<const pb::MntEntry*> out;
    for (const Tree& tree : trees) {
      out.insert(out.end(), tree.entries.begin(), tree.entries.end());
    }
    return out;
  }

  static Sources::Asker asker(const Tree& tree) { return {tree.made[tree.root_index()].get(), tree.net}; }

  Result<void> prepare_stage() {
    // Slaves, not private: the new root may have to receive what the host mounts below it, as before.
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) {
      return sys_fail("mount(/, slave)");
    }
    FERRY_TRY(top_, open_directory("/"));
    FERRY_CHECK(sources_.make_stage(top_.get()));
    const std::string path = context_.options.root.empty() ? "/" : context_.options.root;
    Tree& tree = trees_.front();
    UniqueFd& root = tree.made[tree.root_index()];
    FERRY_TRY(root, sys::clone_mount(AT_FDCWD, path).during("new root"));
    FERRY_CHECK(sources_.put_on_stage(root.get(), "root"));
    if (tree.root().master_id() == 0) {
      FERRY_CHECK(sys::set_mount_attributes(root.get(), 0, 0, MS_PRIVATE));
    }
    return sources_.add_root(tree.root(), path);
  }

  // Parents first.  What is made of layers has to wait until these are there.
  Result<void> make_tree(Tree& tree) {
    const bool first = &tree == &trees_.front();
    if (!first) {
      const std::size_t root = tree.root_index();
      FERRY_CHECK(make(tree, root).during("{}", describe(tree.root())));
      FERRY_CHECK(sources_.put_on_stage(tree.made[root].get(), fmt::format("ns{}", tree.id)));
    }
    std::vector<std::size_t> todo(tree.order.begin() + 1, tree.order.end());
    std::erase_if(todo, [&](std::size_t i) { return is_terminal_bind(*tree.entries[i]); });
    while (!todo.empty()) {
      std::vector<std::size_t> later;
      std::optional<Result<void>> refused;
      for (const std::size_t i : todo) {
        const pb::MntEntry& entry = *tree.entries[i];
        if (!tree.made[tree.parents[i]]) {
          later.push_back(i);
          continue;
        }
        auto made = make_child(tree, i).during("{}", describe(entry));
        if (made.has_value()) {
          continue;
        }
        if (making_of(entry) != Making::of_layers) {
          return made;
        }
        later.push_back(i);
        refused = std::move(made);
      }
      if (later.size() == todo.size()) {
        if (refused.has_value()) {
          return std::move(*refused);
        }
        return fail(Kind::corrupt, "mounts stand on a terminal that is bound to a file");
      }
      todo = std::move(later);
    }
    return {};
  }

  Result<void> make(Tree& tree, std::size_t i) {
    const pb::MntEntry& entry = *tree.entries[i];
    FERRY_TRY(UniqueFd mount, sources_.mount_of(entry, asker(tree)));
    FERRY_CHECK(set_flags(mount.get(), entry.flags()));
    tree.made[i] = std::move(mount);
    return {};
  }

  Result<void> make_child(Tree& tree, std::size_t i) {
    const pb::MntEntry& entry = *tree.entries[i];
    if (!tree.made[i]) {
      FERRY_CHECK(make(tree, i));
    }
    const std::size_t parent = tree.parents[i];
    FERRY_TRY(const struct stat st, sys::stat_fd(tree.made[i].get(), entry.mountpoint()));
    const std::string rest = relative_to(entry.mountpoint(), tree.entries[parent]->mountpoint());
    FERRY_TRY(const UniqueFd place, rest.empty() ? sys::duplicate(tree.made[parent].get())
                                                 : open_mountpoint(tree.made[parent].get(), rest, S_ISDIR(st.st_mode)));
    return sys::attach_mount(tree.made[i].get(), place.get(), entry.mountpoint());
  }

  // Mounts that were peers of mounts of the host's namespace become that again; an external one of what the
  // caller names.
  Result<void> join_outer_peers(std::vector<Placed>& placed) {
    for (Placed& p : placed) {
      if (!p.entry->has_ferry_peer()) {
        continue;
      }
      FERRY_TRY(const auto external, external_path(*p.entry, context_.options));
      const std::string path = external.value_or(p.entry->ferry_peer());
      FERRY_TRY(const UniqueFd peer, sys::open_in_root(host_root_.get(), path, O_PATH));
      FERRY_CHECK(sys::set_mount_attributes(p.mount, 0, 0, MS_PRIVATE));
      auto copied = sys::copy_mount_group(peer.get(), p.mount);
      // EINVAL: on this host it is not shared; then the mounts of the tree are peers of each other only.
      if (!copied.has_value() && copied.error().os_errno != EINVAL) {
        return std::move(copied).during("{}, which was a peer of {} of the host", describe(*p.entry), path);
      }
      p.joined = copied.has_value();
    }
    return {};
  }

  // A copy of the whole namespace, in which everything but this tree is taken down.
  Result<void> split_off(const Tree& tree) {
    const int root = tree.made[tree.root_index()].get();
    Inside copy;
    FERRY_CHECK(copy.enter_namespaces(context_.root().pid));
    const auto split = [&]() -> Result<UniqueFd> {
      // mount_namespaces(7): the copy gets the directories of who makes it, on the copied mounts.
      if (::fchdir(top_.get()) != 0 || ::chroot(".") != 0 || ::fchdir(root) != 0) {
        return sys_fail("fchdir(root of a mount namespace)");
      }
      if (::unshare(CLONE_NEWNS) != 0) {
        return sys_fail("unshare(CLONE_NEWNS)");
      }
      FERRY_CHECK(pivot(tree.root().shared_id() != 0 ? root : -1));
      return sys::open_at(host_proc_.get(), "thread-self/ns/mnt", O_RDONLY);
    };
    FERRY_TRY(UniqueFd ns, copy.get<UniqueFd>(split));
    context_.nested.put(NsKind::mnt, tree.id, std::move(ns));
    return {};
  }

  // The namespace of the root task itself.
  Result<void> pivot_first() {
    const Tree& tree = trees_.front();
    const int root = tree.made[tree.root_index()].get();
    // A copy of the namespace keeps a peer of the root while the root has none.
    Inside copy;
    UniqueFd peer;
    if (tree.root().shared_id() != 0) {
      FERRY_CHECK(copy.enter_namespaces(context_.root().pid));
      const auto hold = [&]() -> Result<UniqueFd> {
        if (::fchdir(root) != 0 || ::unshare(CLONE_NEWNS) != 0) {
          return sys_fail("unshare(CLONE_NEWNS)");
        }
        return sys::open(".", O_PATH | O_DIRECTORY);
      };
      FERRY_TRY(peer, copy.get<UniqueFd>(hold));
    }
    if (::fchdir(root) != 0) {
      return sys_fail("fchdir(new root)");
    }
    return pivot(peer ? peer.get() : -1);
  }

  // pivot_root(2), "pivot_root(".", ".")", to the current directory: the old root ends up on top of the new one,
  // with the stage on it.  The kernel moves everyone whose root was the old one: the skeleton and this thread.
  // `peer`: of a new root that is shared, where the kernel would not put the old one; elsewhere -1.
  Result<void> pivot(int peer) {
    FERRY_TRY(const UniqueFd here, sys::open(".", O_PATH | O_DIRECTORY));
    FERRY_TRY(const UniqueFd old, open_directory("/"));
    if (peer >= 0) {
      FERRY_CHECK(sys::set_mount_attributes(here.get(), 0, 0, MS_PRIVATE));
    }
    if (::syscall(SYS_pivot_root, ".", ".") != 0) {
      return sys_fail(fmt::format("pivot_root({})", context_.options.root));
    }
    // What goes down must not go down at its peers and slaves as well.
    if (::fchdir(old.get()) != 0 || ::mount(nullptr, ".", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      return sys_fail("mount(old root, private)");
    }
    for (const char* what : {"stage", "old root"}) {
      if (::umount2(".", MNT_DETACH) != 0) {
        return sys_fail(fmt::format("umount2({})", what));
      }
    }
    if (::chdir("/") != 0) {
      return sys_fail("chdir(/)");
    }
    return peer >= 0 ? sys::copy_mount_group(peer, here.get()).during("mount /") : Result<void>();
  }

  RestoreContext& context_;
  std::vector<Tree> trees_;  // that of the root task first
  Sources sources_;
  UniqueFd top_, host_root_, host_proc_;
};

// Errors: corrupt.
Result<Tree> tree_of(const image::Set& set, std::uint32_t id) {
  Tree tree;
  tree.id = id;
  const image::Name name{image::Type::mountpoints, id};
  tree.entries = set.list<pb::MntEntry>(name);
  if (tree.entries.empty()) {
    return fail(Kind::corrupt, "{} is missing or empty", image::file_name(name));
  }
  std::vector<Place> places;
  std::map<int, std::size_t> by_id;
  for (const pb::MntEntry* entry : tree.entries) {
    if (!entry->mountpoint().starts_with('/')) {
      return fail(Kind::corrupt, "{}: \"{}\" is not an absolute path", image::file_name(name), entry->mountpoint());
    }
    by_id.emplace(static_cast<int>(entry->mnt_id()), places.size());
    places.push_back(
        {static_cast<int>(entry->mnt_id()), static_cast<int>(entry->parent_mnt_id()), entry->mountpoint()});
  }
  FERRY_TRY(tree.order, mount_order(places).during("{}", image::file_name(name)));
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto parent = by_id.find(places[i].parent);
    tree.parents.push_back(parent == by_id.end() ? i : parent->second);
    if (parent != by_id.end() && !is_below(places[i].mountpoint, places[parent->second].mountpoint)) {
      return fail(Kind::corrupt, "{}: {} is not below the mount that it stands on", image::file_name(name),
                  places[i].mountpoint);
    }
  }
  tree.made.resize(tree.entries.size());
  return tree;
}

Result<void> bind_terminal(const std::vector<const pb::MntEntry*>& entries, const pb::MntEntry& entry, Inside& inside) {
  const auto whole = std::find_if(entries.begin(), entries.end(), [&](const pb::MntEntry* other) {
    return other->root_dev() == entry.root_dev() && other->root() == "/";
  });
  if (whole == entries.end()) {
    return fail(Kind::unsupported, "it shows terminal {} of a devpts that is mounted nowhere", entry.root());
  }
  return inside.run([&]() -> Result<void> {
    FERRY_TRY(const UniqueFd mount, sys::clone_mount(AT_FDCWD, (*whole)->mountpoint() + entry.root()));
    FERRY_CHECK(sys::set_mount_attributes(mount.get(), 0, 0, MS_PRIVATE));
    FERRY_CHECK(set_flags(mount.get(), entry.flags()));
    FERRY_TRY(const UniqueFd place, sys::open(entry.mountpoint(), O_PATH));
    return sys::attach_mount(mount.get(), place.get(), entry.mountpoint());
  });
}

}  // namespace

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::mnt));
  if (ids.empty()) {
    return {};
  }
  if (ids.front() != namespace_of(*context.root().ids, NsKind::mnt)) {
    return fail(Kind::unsupported, "a mount namespace differs from that of the host, but not that of the root task");
  }
  std::vector<Tree> trees;
  for (const std::uint32_t id : ids) {
    FERRY_TRY(Tree tree, tree_of(context.set, id));
    for (const auto& task : context.tasks) {
      if (tree.net == 0 && task->ids != nullptr && namespace_of(*task->ids, NsKind::mnt) == id) {
        tree.net = namespace_of(*task->ids, NsKind::net);
      }
    }
    trees.push_back(std::move(tree));
  }
  Builder builder(context, std::move(trees));
  FERRY_CHECK(builder.prepare());
  FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
  FERRY_CHECK(context.inside.run([&] { return builder.build(); }).during("mounts"));
  context.nested.forget_insides();  // their roots were those before the pivot
  return context.inside.enter(context.root().pid);
}

Result<void> finish(RestoreContext& context) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::mnt));
  for (const std::uint32_t id : ids) {
    const auto entries = context.set.list<pb::MntEntry>({image::Type::mountpoints, id});
    for (const pb::MntEntry* entry : entries) {
      if (is_terminal_bind(*entry)) {
        FERRY_TRY(Inside* const inside, context.nested.inside(context, NsKind::mnt, id));
        FERRY_CHECK(bind_terminal(entries, *entry, *inside).during("{}", describe(*entry)));
      }
    }
  }
  return {};
}

}  // namespace ferry::state::mount
