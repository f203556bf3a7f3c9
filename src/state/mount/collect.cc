#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>

#include "state/dump_host.h"
#include "state/mount/archive.h"
#include "state/mount/fstype.h"
#include "state/mount/mount.h"
#include "state/mount/mountinfo.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"
#include "sys/mount_api.h"

namespace ferry::state::mount {
namespace {

std::string describe(const Line& line) { return fmt::format("mount {} ({})", line.mountpoint, line.type); }

Result<std::uint64_t> mount_id(int directory, const std::string& path) {
  struct statx st;
  // AT_NO_AUTOMOUNT: looking must not mount anything.
  if (::statx(directory, path.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_MNT_ID, &st) != 0) {
    return sys_fail(fmt::format("statx({})", path));
  }
  return static_cast<std::uint64_t>(st.stx_mnt_id);
}

class Collector {
 public:
  Collector(DumpContext& context, NamespaceIds ids) : context_(context), ids_(ids) {}

  Result<void> read() {
    // Of cgroup file systems mountinfo shows the paths as the reader's cgroup namespace has them, so those of
    // the tree's own are read from inside.
    DumpTask& root = context_.root();
    const auto read_theirs = [&] { return sys::read_file_at(root.proc.get(), "mountinfo"); };
    FERRY_TRY(const std::string theirs, ids_.is_new(NsKind::cgroup) ? context_.host.inside().get<std::string>(read_theirs)
                                                                    : read_theirs());
    FERRY_TRY(lines_, parse_mountinfo(theirs));
    for (const Line& line : lines_) {
      // What lies outside of the namespace begins with "/.." there (cgroup_namespaces(7)) and is the host's.
      if (ids_.is_new(NsKind::cgroup) && line.type.starts_with("cgroup") && !line.root.starts_with("/..")) {
        own_cgroups_.insert(line.id);
      }
    }
    const auto& skip = context_.options.skip_mounts;
    std::erase_if(lines_, [&](const Line& line) {
      return std::find(skip.begin(), skip.end(), line.mountpoint) != skip.end();
    });
    for (const Line& line : lines_) {
      places_.push_back({line.id, line.parent, line.mountpoint});
    }
    FERRY_TRY(order_, mount_order(places_));
    root_ = &lines_[order_.front()];
    if (root_->mountpoint != "/") {
      return fail(Kind::unsupported, "{} has a root directory that is not the root of a mount (chroot), so its mounts "
                                     "cannot be told apart",
                  context_.root().subject());
    }
    for (const Line& line : lines_) {
      if (&line != root_ && line.mountpoint == "/") {
        return fail(Kind::unsupported, "{} lies over the root directory, which cannot be carried", describe(line));
      }
    }
    return {};
  }

  Result<void> describe_all() {
    // Entries stand in the reverse order of mountinfo, the root last; with us the order in which the
    // mounts can be taken down, which is the same unless mounts hide each other.
    for (auto it = order_.rbegin(); it != order_.rend(); ++it) {
      FERRY_CHECK(add(lines_[*it]));
    }
    return {};
  }

  Result<void> archive_tmpfs();


 private:
  using Views = std::map<std::uint32_t, UniqueFd>;  // by device
  static Result<void> take_view(const Line& line, Views& views);
  Result<void> take_hidden(const std::map<std::uint32_t, const Line*>& wanted, Views& views);

  // The key under which the caller knows a mount.
  std::optional<std::string> declared_key(const Line& line) const {
    for (const ExternalMount& external : context_.options.external_mounts) {
      if (external.key == line.mountpoint) {
        return external.value;
      }
    }
    return external_key(context_.options, "mnt", line.mountpoint);
  }

  // Where the same files are in our own mount namespace.
  std::optional<std::string> path_here(const Line& line) const {
    const auto& mounts = context_.host.mounts();
    for (auto own = mounts.rbegin(); own != mounts.rend(); ++own) {
      if (own->dev != line.dev || !(line.root == own->root || is_below(line.root, own->root))) {
        continue;
      }
      // Something else may be mounted over that place.
      const Result<std::uint64_t> visible = mount_id(AT_FDCWD, own->mountpoint);
      if (!visible.has_value() || *visible != static_cast<std::uint64_t>(own->id)) {
        continue;
      }
      const std::string rest = line.root == own->root ? "" : relative_to(line.root, own->root);
      std::string path = own->mountpoint;
      if (!rest.empty()) {
        path += (path == "/" ? "" : "/") + rest;
      }
      return path;
    }
    return std::nullopt;
  }

  Result<void> add(const Line& line) {
    const FsKind& kind = fs_kind(line.type);
    pb::MntEntry entry;
    entry.set_fstype(kind.type);
    entry.set_mnt_id(static_cast<std::uint32_t>(line.id));
    entry.set_root_dev(line.dev);
    entry.set_parent_mnt_id(static_cast<std::uint32_t>(line.parent));
    entry.set_flags(line.flags);
    entry.set_root(line.root);
    entry.set_mountpoint(line.mountpoint);
    entry.set_source(line.source);
    entry.set_options(line.options);
    entry.set_shared_id(line.shared);
    entry.set_master_id(line.master);
    entry.set_sb_flags(line.superblock_flags);
    if (kind.type == pb::FSTYPE_DEVPTS) {
      entry.set_options(line.options + (line.options.empty() ? "" : ",") + "newinstance");
    }
    if (&line != root_) {
      FERRY_CHECK(find_source(line, kind, entry));
    }
    context_.set.add(image_name(), std::move(entry));
    return {};
  }

  // Says in the entry where a restore gets the mount from, or refuses.
  Result<void> find_source(const Line& line, const FsKind& kind, pb::MntEntry& entry) {
    if (line.mountpoint.ends_with("//deleted")) {
      return fail(Kind::unsupported, "{}: its mount point was deleted, so it cannot be mounted there again",
                  describe(line));
    }
    if (const auto key = declared_key(line)) {
      entry.set_ext_key(*key);
      return {};
    }
    if (kind.making == Making::of_namespace || own_cgroups_.contains(line.id)) {
      return {};
    }
    if (line.dev == root_->dev && is_below(line.root, root_->root)) {
      return {};  // a bind of a part of the root
    }
    if (const auto path = path_here(line)) {
      entry.set_ext_key(kAutogenerated);
      entry.set_source(*path);
      return {};
    }
    if (line.root.ends_with("//deleted")) {
      return fail(Kind::unsupported, "{} shows {}, which was deleted; declare it external or unmount it",
                  describe(line), line.root);
    }
    switch (kind.making) {
      case Making::fresh:
        if (kind.type == pb::FSTYPE_TMPFS && whole(line.dev) == nullptr) {
          break;
        }
        return {};
      case Making::of_skeleton:
        if (kind.type == pb::FSTYPE_CGROUP || kind.type == pb::FSTYPE_CGROUP2) {
          break;
        }
        return {};
      case Making::of_kernel:
        return {};
      case Making::of_namespace:
      case Making::foreign:
        break;
    }
    return fail(Kind::unsupported,
                "{} (device {}:{}, {}) can neither be made again nor found on this host; declare it external "
                "(--external mnt[{}]:KEY) or unmount it",
                describe(line), line.dev >> 20, line.dev & 0xfffff, line.root, line.mountpoint);
  }

  // The mount in the tree that shows a whole filesystem.
  const Line* whole(std::uint32_t dev) const {
    for (const Line& line : lines_) {
      if (line.dev == dev && line.root == "/") {
        return &line;
      }
    }
    return nullptr;
  }

  image::Name image_name() const { return {image::Type::mountpoints, ids_.id(NsKind::mnt)}; }

  DumpContext& context_;
  NamespaceIds ids_;
  std::vector<Line> lines_;
  std::vector<Place> places_;
  std::vector<std::size_t> order_;
  std::set<int> own_cgroups_;  // cgroup mounts within the tree's cgroup namespace
  const Line* root_ = nullptr;
};

// A clone of the mount shows the filesystem without what is mounted on its directories.
Result<void> Collector::take_view(const Line& line, Views& views) {
  FERRY_TRY(UniqueFd view, sys::clone_mount(AT_FDCWD, line.mountpoint));
  // Reading must not leave a trace in the access times.
  FERRY_CHECK(sys::set_mount_attributes(view.get(), MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME, MS_PRIVATE));
  views.emplace(line.dev, std::move(view));
  return {};
}

// Those that lie below another mount.  In a copy of the namespace, which goes away with a thread of its own,
// everything can be taken down from the top until each was visible once.
Result<void> Collector::take_hidden(const std::map<std::uint32_t, const Line*>& wanted, Views& views) {
  const auto take_down = [&]() -> Result<void> {
    if (::unshare(CLONE_NEWNS) != 0) {
      return sys_fail("unshare(CLONE_NEWNS)");
    }
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
      return sys_fail("mount(/, private)");
    }
    for (auto it = order_.rbegin(); it != order_.rend() && views.size() < wanted.size(); ++it) {
      const Line& line = lines_[*it];
      const auto found = wanted.find(line.dev);
      if (found != wanted.end() && found->second == &line && !views.contains(line.dev)) {
        FERRY_CHECK(take_view(line, views).during("{}", describe(line)));
      }
      if (&line != root_ && ::umount2(line.mountpoint.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0) {
        return sys_fail(fmt::format("umount2({}) in a copy of the namespace", line.mountpoint));
      }
    }
    return {};
  };
  Inside copy;
  FERRY_CHECK(copy.enter(context_.root().pid));
  return copy.run(take_down);
}

Result<void> Collector::archive_tmpfs() {
  // Which filesystems have to be kept: those whose mounts in the tree are not all external.
  std::map<std::uint32_t, const Line*> wanted;
  std::map<std::uint32_t, pb::MntEntry*> entries;
  for (const image::Entry& item : context_.set.entries(image_name())) {
    auto* entry = static_cast<pb::MntEntry*>(item.message.get());
    if (entry->fstype() == pb::FSTYPE_TMPFS && !entry->has_ext_key() && entry->mountpoint() != "/") {
      wanted.emplace(entry->root_dev(), whole(entry->root_dev()));
      entries.emplace(entry->root_dev(), entry);
    }
  }
  std::erase_if(wanted, [](const auto& item) { return item.second == nullptr; });  // a bind of a part of the root
  if (wanted.empty()) {
    return {};
  }
  Views views;
  Inside& inside = context_.host.inside();
  const auto take_visible = [&]() -> Result<void> {
    for (const auto& [dev, line] : wanted) {
      FERRY_TRY(const std::uint64_t visible, mount_id(AT_FDCWD, line->mountpoint));
      if (visible == static_cast<std::uint64_t>(line->id)) {
        FERRY_CHECK(take_view(*line, views).during("{}", describe(*line)));
      }
    }
    return {};
  };
  FERRY_CHECK(inside.run(take_visible));
  if (views.size() != wanted.size()) {
    FERRY_CHECK(take_hidden(wanted, views));
  }
  for (const auto& [dev, line] : wanted) {
    const int view = views.at(dev).get();
    FERRY_TRY(Archived archive, archive_tree(view).during("{}", describe(*line)));
    for (const Node& socket : archive.sockets) {
      pb::FerryNode& node = *entries.at(dev)->add_ferry_sockets();
      node.set_path(socket.path);
      node.set_mode(socket.mode);
      node.set_uid(socket.uid);
      node.set_gid(socket.gid);
    }
    context_.host.keep(std::move(views.at(dev)));
    context_.set.set_raw({image::Type::tmpfs_dev, dev}, std::move(archive.bytes));
  }
  return {};
}

}  // namespace

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::mnt)) {
    return {};
  }
  Collector collector(context, ids);
  FERRY_CHECK(collector.read());
  FERRY_CHECK(collector.describe_all());
  return collector.archive_tmpfs();
}

}  // namespace ferry::state::mount
