#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "state/mount/archive.h"
#include "state/mount/fstype.h"
#include "state/mount/mount.h"
#include "state/mount/mountinfo.h"
#include "state/mount/propagation.h"
#include "state/mount/source.h"
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

// The file or directory to mount on, made if the path ends before it: a mount point that a runtime made
// in a layer of the image may be missing where the layers were copied.
Result<UniqueFd> open_mountpoint(int root, const std::string& path, bool directory) {
  auto found = sys::open_in_root(root, path, O_PATH);
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
    const std::string next = done + "/" + name;
    if (const auto there = sys::open_in_root(root, next, O_PATH); !there.has_value()) {
      FERRY_TRY(const UniqueFd parent, sys::open_in_root(root, done.empty() ? "/" : done, O_PATH | O_DIRECTORY));
      if (last && !directory) {
        FERRY_TRY(const UniqueFd file, sys::open_at(parent.get(), name, O_CREAT | O_EXCL | O_WRONLY, 0644));
      } else if (::mkdirat(parent.get(), name.c_str(), 0755) != 0) {
        return sys_fail(fmt::format("mkdir({})", next));
      }
    }
    if (last) {
      return sys::open_in_root(root, path, O_PATH);
    }
    done = next;
  }
}

// Everything here runs on the thread of context.inside, in the mount namespace of the root skeleton.
class Builder {
 public:
  Builder(RestoreContext& context, std::vector<const pb::MntEntry*> entries, std::vector<std::size_t> order)
      : context_(context), entries_(std::move(entries)), order_(std::move(order)) {
    made_.resize(entries_.size());
  }

  // Superblocks that show a namespace which only the skeleton is in; on our own thread, before build().
  Result<void> make_in_skeleton() {
    for (const pb::MntEntry* entry : entries_) {
      FERRY_TRY(const auto external, external_path(*entry, context_.options));
      if (!external.has_value() && making_of(*entry) == Making::of_skeleton && !early_.contains(entry->root_dev())) {
        FERRY_TRY(UniqueFd mount, make_superblock_in(context_.root(), *entry).during("{}", describe(*entry)));
        early_.emplace(entry->root_dev(), std::move(mount));
      }
    }
    return {};
  }

  Result<void> build() {
    FERRY_CHECK(prepare_stage());
    for (const std::size_t i : order_) {
      const pb::MntEntry& entry = *entries_[i];
      if (i != order_.front() && !is_terminal_bind(entry)) {
        FERRY_CHECK(make(i).during("{}", describe(entry)));
      }
    }
    for (auto& [dev, source] : sources_) {
      if (source.read_only_later) {
        FERRY_CHECK(sys::make_superblock_read_only(source.mount.get()).during("mount {}", source.archive_of));
      }
    }
    FERRY_CHECK(set_flags(root_.get(), root_entry().flags()).during("mount /"));
    FERRY_CHECK(pivot());
    return restore_propagation(entries_, made_, root_.get(), order_.front());
  }

 private:
  const pb::MntEntry& root_entry() const { return *entries_[order_.front()]; }

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
    FERRY_TRY(const UniqueFd top, open_directory("/"));
    FERRY_CHECK(sys::attach_mount(stage_.get(), top.get(), "/"));

    const std::string path = context_.options.root.empty() ? "/" : context_.options.root;
    FERRY_TRY(root_, sys::clone_mount(AT_FDCWD, path).during("new root"));
    FERRY_CHECK(put_on_stage(root_.get(), "root"));
    if (root_entry().master_id() == 0) {
      FERRY_CHECK(sys::set_mount_attributes(root_.get(), 0, 0, MS_PRIVATE));
    }
    Source source;
    FERRY_TRY(source.mount, sys::clone_mount(AT_FDCWD, path));
    FERRY_CHECK(sys::set_mount_attributes(source.mount.get(), 0, 0, MS_PRIVATE));
    FERRY_CHECK(put_on_stage(source.mount.get(), "0"));
    source.root = root_entry().root();
    sources_.emplace(root_entry().root_dev(), std::move(source));
    return {};
  }

  Result<void> put_on_stage(int mount, const std::string& name) {
    if (::mkdirat(stage_.get(), name.c_str(), 0700) != 0) {
      return sys_fail(fmt::format("mkdir({}) on the stage", name));
    }
    FERRY_TRY(const UniqueFd place, sys::open_at(stage_.get(), name, O_PATH | O_DIRECTORY));
    return sys::attach_mount(mount, place.get(), "the stage");
  }

  std::vector<Node> sockets_of(std::uint32_t dev) const {
    std::vector<Node> out;
    for (const pb::MntEntry* entry : entries_) {
      for (const pb::FerryNode& node : entry->ferry_sockets()) {
        if (entry->root_dev() == dev) {
          out.push_back({node.path(), node.mode(), node.uid(), node.gid()});
        }
      }
    }
    return out;
  }

  Result<const Source*> source_of(const pb::MntEntry& entry) {
    const auto found = sources_.find(entry.root_dev());
    if (found != sources_.end()) {
      return &found->second;
    }
    if (making_of(entry) == Making::foreign) {
      return fail(Kind::unsupported, "filesystem {} (type {}) is neither the root nor external, and cannot be made",
                  entry.source(), entry.fsname().empty() ? std::to_string(entry.fstype()) : entry.fsname());
    }
    Source source;
    if (const auto early = early_.find(entry.root_dev()); early != early_.end()) {
      source.mount = std::move(early->second);
    } else {
      FERRY_TRY(source.mount, make_superblock(entry));
    }
    source.archive_of = entry.mountpoint();
    FERRY_CHECK(put_on_stage(source.mount.get(), std::to_string(sources_.size())));
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

  Result<UniqueFd> clone_of_source(const pb::MntEntry& entry) {
    FERRY_TRY(const Source* source, source_of(entry));
    if (!is_below(entry.root(), source->root) && entry.root() != source->root) {
      return fail(Kind::corrupt, "it shows {}, which is not below {} of the same filesystem", entry.root(),
                  source->root);
    }
    const std::string below = relative_to(entry.root(), source->root);
    if (below.empty()) {
      return sys::clone_mount(source->mount.get(), "");
    }
    FERRY_TRY(const UniqueFd file, sys::open_in_root(source->mount.get(), below, O_PATH | O_NOFOLLOW));
    return sys::clone_mount(file.get(), "");
  }

  Result<void> make(std::size_t i) {
    const pb::MntEntry& entry = *entries_[i];
    FERRY_TRY(const auto external, external_path(entry, context_.options));
    UniqueFd& mount = made_[i];
    if (external.has_value()) {
      FERRY_TRY(mount, sys::clone_mount(AT_FDCWD, *external));
    } else {
      FERRY_TRY(mount, clone_of_source(entry));
    }
    if (!external.has_value() || entry.master_id() == 0) {
      FERRY_CHECK(sys::set_mount_attributes(mount.get(), 0, 0, MS_PRIVATE));
    }
    FERRY_CHECK(set_flags(mount.get(), entry.flags()));
    FERRY_TRY(const struct stat st, sys::stat_fd(mount.get(), entry.mountpoint()));
    FERRY_TRY(const UniqueFd place, open_mountpoint(root_.get(), entry.mountpoint(), S_ISDIR(st.st_mode)));
    return sys::attach_mount(mount.get(), place.get(), entry.mountpoint());
  }

  // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and the stage on top
  // of it; both are taken off.
  // The kernel moves everyone whose root was the old one: the skeleton and this thread.
  Result<void> pivot() {
    if (::fchdir(root_.get()) != 0) {
      return sys_fail("fchdir(new root)");
    }
    if (::syscall(SYS_pivot_root, ".", ".") != 0) {
      return sys_fail(fmt::format("pivot_root({})", context_.options.root));
    }
    for (const char* what : {"stage", "old root"}) {
      if (::umount2(".", MNT_DETACH) != 0) {
        return sys_fail(fmt::format("umount2({})", what));
      }
    }
    if (::chdir("/") != 0) {
      return sys_fail("chdir(/)");
    }
    return {};
  }

  RestoreContext& context_;
  std::vector<const pb::MntEntry*> entries_;
  std::vector<std::size_t> order_;
  std::vector<UniqueFd> made_;  // for each entry; none for the root and what comes later
  std::map<std::uint32_t, UniqueFd> early_;
  std::map<std::uint32_t, Source> sources_;
  UniqueFd stage_, root_;
};

// What mount_order wants of the entries.
Result<std::vector<Place>> places_of(const std::vector<const pb::MntEntry*>& entries) {
  std::vector<Place> out;
  for (const pb::MntEntry* entry : entries) {
    if (!entry->mountpoint().starts_with('/')) {
      return fail(Kind::corrupt, "mountpoints: \"{}\" is not an absolute path", entry->mountpoint());
    }
    out.push_back({static_cast<int>(entry->mnt_id()), static_cast<int>(entry->parent_mnt_id()), entry->mountpoint()});
  }
  return out;
}

}  // namespace

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::mnt)) {
    return {};
  }
  const image::Name name{image::Type::mountpoints, ids.id(NsKind::mnt)};
  auto entries = context.set.list<pb::MntEntry>(name);
  if (entries.empty()) {
    return fail(Kind::corrupt, "{} is missing or empty", image::file_name(name));
  }
  FERRY_TRY(const auto places, places_of(entries));
  FERRY_TRY(auto order, mount_order(places).during("{}", image::file_name(name)));
  Builder builder(context, std::move(entries), std::move(order));
  FERRY_CHECK(builder.make_in_skeleton());
  FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
  FERRY_CHECK(context.inside.run([&] { return builder.build(); }).during("mounts"));
  return context.inside.enter(context.root().pid);
}

Result<void> finish(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::mnt)) {
    return {};
  }
  const auto entries = context.set.list<pb::MntEntry>({image::Type::mountpoints, ids.id(NsKind::mnt)});
  for (const pb::MntEntry* entry : entries) {
    if (!is_terminal_bind(*entry)) {
      continue;
    }
    const auto whole = std::find_if(entries.begin(), entries.end(), [&](const pb::MntEntry* other) {
      return other->root_dev() == entry->root_dev() && other->root() == "/";
    });
    if (whole == entries.end()) {
      return fail(Kind::unsupported, "{} shows terminal {} of a devpts that is mounted nowhere", describe(*entry),
                  entry->root());
    }
    const auto bind = [&]() -> Result<void> {
      FERRY_TRY(const UniqueFd mount, sys::clone_mount(AT_FDCWD, (*whole)->mountpoint() + entry->root()));
      FERRY_CHECK(sys::set_mount_attributes(mount.get(), 0, 0, MS_PRIVATE));
      FERRY_CHECK(set_flags(mount.get(), entry->flags()));
      FERRY_TRY(const UniqueFd top, open_directory("/"));
      FERRY_TRY(const UniqueFd place, open_mountpoint(top.get(), entry->mountpoint(), false));
      return sys::attach_mount(mount.get(), place.get(), entry->mountpoint());
    };
    FERRY_CHECK(context.inside.run(bind).during("{}", describe(*entry)));
  }
  return {};
}

}  // namespace ferry::state::mount
