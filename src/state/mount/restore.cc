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

#include "state/mount/archive.h"
#include "state/mount/fstype.h"
#include "state/mount/mount.h"
#include "state/mount/mountinfo.h"
#include "state/mount/propagation.h"
#include "state/mount/source.h"
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
  std::vector<std::size_t> order;     // mount_order
  std::vector<std::size_t> parents;   // entry to entry; the root's is its own
  std::vector<UniqueFd> made;         // for each entry; none for what comes later
  [[nodiscard]] std::size_t root_index() const { return order.front(); }
  [[nodiscard]] const pb::MntEntry& root() const { return *entries[root_index()]; }
};

// Everything here runs on the thread of context.inside, in the mount namespace of the root skeleton.
class Builder {
 public:
  Builder(RestoreContext& context, std::vector<Tree> trees) : context_(context), trees_(std::move(trees)) {}

  // Superblocks that show a namespace which only the skeleton is in; on our own thread, before build().
  Result<void> make_in_skeleton() {
    for (const Tree& tree : trees_) {
      for (const pb::MntEntry* entry : tree.entries) {
        FERRY_TRY(const auto external, external_path(*entry, context_.options));
        if (!external.has_value() && making_of(*entry) == Making::of_skeleton && !early_.contains(entry->root_dev())) {
          FERRY_TRY(UniqueFd mount, make_superblock_in(context_.root(), *entry).during("{}", describe(*entry)));
          early_.emplace(entry->root_dev(), std::move(mount));
        }
      }
    }
    FERRY_TRY(host_root_, open_directory("/"));
    FERRY_TRY(host_proc_, open_directory("/proc"));
    return {};
  }

  Result<void> build() {
    FERRY_CHECK(prepare_stage());
    for (Tree& tree : trees_) {
      FERRY_CHECK(make_tree(tree));
    }
    for (auto& [dev, source] : sources_) {
      if (source.read_only_later) {
        FERRY_CHECK(sys::make_superblock_read_only(source.mount.get()).during("mount {}", source.archive_of));
      }
    }
    Tree& first = trees_.front();
    FERRY_CHECK(set_flags(first.made[first.root_index()].get(), first.root().flags()).during("mount /"));
    std::vector<Placed> placed;
    for (const Tree& tree : trees_) {
      for (std::size_t i = 0; i < tree.entries.size(); ++i) {
        if (tree.made[i]) {
          const bool tree_root = &tree == &first && i == tree.root_index();
          placed.push_back({tree.entries[i], tree.made[i].get(), tree_root || !tree.entries[i]->ext_key().empty()});
        }
      }
    }
    FERRY_CHECK(join_outer_peers(placed));
    const auto whole = [this](const pb::MntEntry& entry) -> Result<int> {
      FERRY_TRY(const Source* source, source_of(entry, trees_.front()));
      FERRY_TRY(UniqueFd helper, sys::clone_mount(source->mount.get(), ""));
      FERRY_CHECK(put_on_stage(helper.get(), fmt::format("helper{}", helpers_.size())));
      helpers_.push_back(std::move(helper));
      return helpers_.back().get();
    };
    FERRY_CHECK(restore_propagation(placed, whole));
    for (std::size_t i = 1; i < trees_.size(); ++i) {
      FERRY_CHECK(split_off(trees_[i]).during("mount namespace {}", trees_[i].id));
    }
    return pivot_first();
  }

 private:
  // A tmpfs of ours over the old root, reachable by descriptor only: there the sources are mounted, and
  // with the old root they go away.
  Result<void> prepare_stage() {
    // Slaves, not private: the new root may have to receive what the host mounts below it, as before.
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) {
      return sys_fail("mount(/, slave)");
    }
    FERRY_TRY(const UniqueFd fs, sys::fs_open("tmpfs"));
    FERRY_CHECK(sys::fs_create(fs.get()));
    FERRY_TRY(stage_, sys::fs_mount(fs.get(), "tmpfs"));
    FERRY_TRY(top_, open_directory("/"));
    FERRY_CHECK(sys::attach_mount(stage_.get(), top_.get(), "/"));
    FERRY_CHECK(sys::set_mount_attributes(stage_.get(), 0, 0, MS_PRIVATE));

    const std::string path = context_.options.root.empty() ? "/" : context_.options.root;
    Tree& tree = trees_.front();
    UniqueFd& root = tree.made[tree.root_index()];
    FERRY_TRY(root, sys::clone_mount(AT_FDCWD, path).during("new root"));
    FERRY_CHECK(put_on_stage(root.get(), "root"));
    if (tree.root().master_id() == 0) {
      FERRY_CHECK(sys::set_mount_attributes(root.get(), 0, 0, MS_PRIVATE));
    }
    Source source;
    FERRY_TRY(source.mount, sys::clone_mount(AT_FDCWD, path));
    FERRY_CHECK(sys::set_mount_attributes(source.mount.get(), 0, 0, MS_PRIVATE));
    FERRY_CHECK(put_on_stage(source.mount.get(), "0"));
    source.root = tree.root().root();
    sources_.emplace(tree.root().root_dev(), std::move(source));
    return {};
  }

  Result<void> put_on_stage(int mount, const std::string& name) {
    FERRY_TRY(const struct stat st, sys::stat_fd(mount, name));
    if (S_ISDIR(st.st_mode) ? ::mkdirat(stage_.get(), name.c_str(), 0700) != 0
                            : ::mknodat(stage_.get(), name.c_str(), S_IFREG | 0600, 0) != 0) {
      return sys_fail(fmt::format("making {} on the stage", name));
    }
    FERRY_TRY(const UniqueFd place, sys::open_at(stage_.get(), name, O_PATH));
    return sys::attach_mount(mount, place.get(), "the stage");
  }

  std::vector<Node> sockets_of(std::uint32_t dev) const {
    std::vector<Node> out;
    for (const Tree& tree : trees_) {
      for (const pb::MntEntry* entry : tree.entries) {
        for (const pb::FerryNode& node : entry->ferry_sockets()) {
          if (entry->root_dev() == dev) {
            out.push_back({node.path(), node.mode(), node.uid(), node.gid()});
          }
        }
      }
    }
    return out;
  }

  Result<const Source*> source_of(const pb::MntEntry& entry, const Tree& tree) {
    const auto found = sources_.find(entry.root_dev());
    if (found != sources_.end()) {
      return &found->second;
    }
    if (making_of(entry) == Making::foreign && entry.fstype() != pb::FSTYPE_AUTO) {
      return fail(Kind::unsupported, "filesystem {} (type {}) is neither the root nor external, and cannot be made",
                  entry.source(), entry.fsname().empty() ? std::to_string(entry.fstype()) : entry.fsname());
    }
    Source source;
    if (const auto early = early_.find(entry.root_dev()); early != early_.end()) {
      source.mount = std::move(early->second);
    } else if (making_of(entry) == Making::of_layers) {
      FERRY_TRY(source.mount, with_root(tree.made[tree.root_index()].get(), [&] { return make_superblock(entry); }));
    } else if (entry.fstype() == pb::FSTYPE_SYSFS) {
      // Shows the network namespace of whoever mounts it.
      FERRY_TRY(Inside* const inside, context_.nested.inside(context_, NsKind::net, tree.net));
      FERRY_TRY(source.mount, inside == &context_.inside ? make_superblock(entry)
                                                         : inside->get<UniqueFd>([&] { return make_superblock(entry); }));
    } else {
      FERRY_TRY(source.mount, make_superblock(entry));
    }
    source.archive_of = entry.mountpoint();
    FERRY_CHECK(put_on_stage(source.mount.get(), std::to_string(sources_.size())));
    FERRY_CHECK(sys::set_mount_attributes(source.mount.get(), 0, 0, MS_PRIVATE));
    if (entry.fstype() == pb::FSTYPE_TMPFS) {
      source.read_only_later = (entry.sb_flags() & MS_RDONLY) != 0;
      const std::string* archive = context_.set.raw({image::Type::tmpfs_dev, entry.root_dev()});
      if (archive == nullptr) {
        return fail(Kind::corrupt, "{} is missing", image::file_name({image::Type::tmpfs_dev, entry.root_dev()}));
      }
      if (::fchdir(source.mount.get()) != 0) {
        return sys_fail("fchdir(new tmpfs)");
      }
      FERRY_CHECK(extract_here(*archive));
      FERRY_CHECK(make_sockets(source.mount.get(), sockets_of(entry.root_dev())));
      if (::chdir("/") != 0) {
        return sys_fail("chdir(/)");
      }
    }
    return &sources_.emplace(entry.root_dev(), std::move(source)).first->second;
  }

  // Runs `work` with another root directory.
  template <class Work>
  Result<UniqueFd> with_root(int root, Work work) {
    if (::fchdir(root) != 0 || ::chroot(".") != 0) {
      return sys_fail("chroot(new root)");
    }
    auto result = work();
    if (::fchdir(top_.get()) != 0 || ::chroot(".") != 0) {
      return sys_fail("chroot(old root)");
    }
    return result;
  }

  Result<UniqueFd> clone_of_source(const pb::MntEntry& entry, const Tree& tree) {
    FERRY_TRY(const Source* source, source_of(entry, tree));
    const std::string shown = entry.has_ferry_deleted() ? entry.ferry_deleted().path() : entry.root();
    if (!is_below(shown, source->root) && shown != source->root) {
      return fail(Kind::corrupt, "it shows {}, which is not below {} of the same filesystem", shown, source->root);
    }
    const std::string below = relative_to(shown, source->root);
    if (entry.has_ferry_deleted()) {
      return clone_deleted(source->mount.get(), below, entry.ferry_deleted());
    }
    if (below.empty()) {
      return sys::clone_mount(source->mount.get(), "");
    }
    FERRY_TRY(const UniqueFd file, sys::open_in_root(source->mount.get(), below, O_PATH | O_NOFOLLOW));
    return sys::clone_mount(file.get(), "");
  }

  // The kernel mounts what has a name: it gets one until it is mounted.
  static Result<UniqueFd> clone_deleted(int source, const std::string& path, const pb::FerryNode& node) {
    const std::string parent = path.substr(0, path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    auto opened = sys::open_in_root(source, parent.empty() ? "/" : parent, O_PATH | O_DIRECTORY);
    if (!opened.has_value()) {  // its directory is gone, too
      opened = sys::open_in_root(source, "/", O_PATH | O_DIRECTORY);
    }
    FERRY_TRY(const UniqueFd directory, std::move(opened));
    const std::string name = path.substr(parent.empty() ? 0 : parent.size() + 1);
    // Something else may have the name by now.
    const std::string made = ::faccessat(directory.get(), name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0
                                 ? fmt::format(".ferry-{}-{}", ::getpid(), name)
                                 : name;
    if (S_ISDIR(node.mode()) ? ::mkdirat(directory.get(), made.c_str(), 0700) != 0
                             : ::mknodat(directory.get(), made.c_str(), node.mode() & (S_IFMT | 0600U), node.rdev()) != 0) {
      return sys_fail(fmt::format("making {} again", path));
    }
    const auto fill = [&]() -> Result<UniqueFd> {
      if (S_ISREG(node.mode())) {
        FERRY_TRY(const UniqueFd file, sys::open_at(directory.get(), made, O_WRONLY | O_NOFOLLOW));
        FERRY_CHECK(sys::write_all(file.get(), node.content().data(), node.content().size(), path));
      }
      if (::fchownat(directory.get(), made.c_str(), node.uid(), node.gid(), AT_SYMLINK_NOFOLLOW) != 0 ||
          ::fchmodat(directory.get(), made.c_str(), node.mode() & 07777, 0) != 0) {
        return sys_fail(fmt::format("giving {} its owner and mode", path));
      }
      FERRY_TRY(const UniqueFd file, sys::open_at(directory.get(), made, O_PATH | O_NOFOLLOW));
      return sys::clone_mount(file.get(), "");
    };
    auto mount = fill();
    if (::unlinkat(directory.get(), made.c_str(), S_ISDIR(node.mode()) ? AT_REMOVEDIR : 0) != 0 && mount.has_value()) {
      return sys_fail(fmt::format("removing {}", path));
    }
    return mount;
  }

  // Parents first.  What is made of layers has to wait until these are there.
  Result<void> make_tree(Tree& tree) {
    const bool first = &tree == &trees_.front();
    if (!first) {
      const std::size_t root = tree.root_index();
      FERRY_CHECK(make(tree, root).during("{}", describe(tree.root())));
      FERRY_CHECK(put_on_stage(tree.made[root].get(), fmt::format("ns{}", tree.id)));
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

  // The mount of an entry, private and attached nowhere.
  Result<void> make(Tree& tree, std::size_t i) {
    const pb::MntEntry& entry = *tree.entries[i];
    UniqueFd& mount = tree.made[i];
    UniqueFd fresh;
    FERRY_TRY(const auto external, external_path(entry, context_.options));
    if (entry.has_ferry_ns_id()) {
      FERRY_TRY(fresh, clone_namespace(entry));
    } else if (external.has_value() && entry.ext_key() == kExternalDevice) {
      FERRY_TRY(fresh, clone_of_device(entry, *external));
    } else if (external.has_value()) {
      FERRY_TRY(fresh, sys::clone_mount(AT_FDCWD, *external));
    } else {
      FERRY_TRY(fresh, clone_of_source(entry, tree));
    }
    if (!external.has_value() || entry.master_id() == 0) {
      FERRY_CHECK(sys::set_mount_attributes(fresh.get(), 0, 0, MS_PRIVATE));
    }
    FERRY_CHECK(set_flags(fresh.get(), entry.flags()));
    mount = std::move(fresh);
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

  // A block device that the caller names.
  Result<UniqueFd> clone_of_device(const pb::MntEntry& entry, const std::string& device) {
    auto found = sources_.find(entry.root_dev());
    if (found == sources_.end()) {
      Source source;
      FERRY_TRY(source.mount, mount_device(entry, device));
      FERRY_CHECK(put_on_stage(source.mount.get(), std::to_string(sources_.size())));
      found = sources_.emplace(entry.root_dev(), std::move(source)).first;
    }
    const std::string below = relative_to(entry.root(), "/");
    if (below.empty()) {
      return sys::clone_mount(found->second.mount.get(), "");
    }
    FERRY_TRY(const UniqueFd file, sys::open_in_root(found->second.mount.get(), below, O_PATH | O_NOFOLLOW));
    return sys::clone_mount(file.get(), "");
  }

  // A namespace bound to a file.
  Result<UniqueFd> clone_namespace(const pb::MntEntry& entry) {
    const std::string kind = entry.root().substr(0, entry.root().find(':'));
    for (const NsKind k : kAllNsKinds) {
      if (ns_name(k) != kind) {
        continue;
      }
      const int held = context_.nested.fd(k, entry.ferry_ns_id());
      if (held >= 0) {
        return sys::clone_mount(held, "");
      }
      // /proc as it was on our side: inside there may be none.
      FERRY_TRY(const UniqueFd own,
                sys::open_at(host_proc_.get(), fmt::format("{}/ns/{}", context_.root().pid, kind), O_RDONLY));
      return sys::clone_mount(own.get(), "");
    }
    return fail(Kind::corrupt, "there is no kind of namespace called {}", kind);
  }

  // Mounts that were peers of mounts of the host's namespace become that again.
  Result<void> join_outer_peers(const std::vector<Placed>& placed) {
    for (const Placed& p : placed) {
      if (!p.entry->has_ferry_peer()) {
        continue;
      }
      const auto open_peer = [&]() -> Result<UniqueFd> {
        return sys::open_in_root(host_root_.get(), p.entry->ferry_peer(), O_PATH);
      };
      FERRY_TRY(const UniqueFd peer, open_peer().during("{}, a peer of {} of the host", describe(*p.entry), p.entry->ferry_peer()));
      FERRY_CHECK(sys::set_mount_attributes(p.mount, 0, 0, MS_PRIVATE));
      FERRY_CHECK(sys::copy_mount_group(peer.get(), p.mount)
                      .during("{}, which was a peer of {} of the host", describe(*p.entry), p.entry->ferry_peer()));
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
  std::map<std::uint32_t, UniqueFd> early_;
  std::map<std::uint32_t, Source> sources_;
  std::vector<UniqueFd> helpers_;
  UniqueFd stage_, top_, host_root_, host_proc_;
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
    places.push_back({static_cast<int>(entry->mnt_id()), static_cast<int>(entry->parent_mnt_id()), entry->mountpoint()});
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
  FERRY_CHECK(builder.make_in_skeleton());
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
