#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "image/proto/tty.pb.h"
#include "state/binfmt_misc/binfmt_misc.h"
#include "state/dump_host.h"
#include "state/mount/fstype.h"
#include "state/mount/mount.h"
#include "state/mount/mountinfo.h"
#include "state/mount/propagation.h"
#include "state/mount/tmpfs.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state::mount {
namespace {

std::string describe(const Line& line) { return fmt::format("mount {} ({})", line.mountpoint, line.type); }

constexpr std::string_view kDeleted = "//deleted";

// The mounts of one mount namespace.
class Collector {
 public:
  Collector(DumpContext& context, TreeNamespace ns, Inside& inside) : context_(context), ns_(ns), inside_(inside) {}

  Result<void> read() {
    // By a thread that is inside: mountinfo shows what is below the reader's root, a task may have another
    // one, and paths of cgroup file systems as the reader's cgroup namespace has them.
    FERRY_TRY(const std::string text,
              inside_.get<std::string>([&] { return context_.host.read_of_thread("mountinfo"); }));
    FERRY_TRY(lines_, parse_mountinfo(text));
    FERRY_CHECK(skip());
    std::uint32_t cgroup_own = 0;
    for (const TreeNamespace& n : tree_namespaces(context_, NsKind::cgroup)) {
      cgroup_own = n.id == namespace_of(*ns_.task->ids, NsKind::cgroup) ? n.id : cgroup_own;
    }
    std::vector<Line> outside;
    for (Line& line : lines_) {
      // What lies outside of the namespace begins with "/.." there (cgroup_namespaces(7)) and is the host's.
      if (cgroup_own != 0 && line.type.starts_with("cgroup")) {
        if (!line.root.starts_with("/..")) {
          own_cgroups_.insert(line.id);
        } else {
          FERRY_CHECK(see_from_outside(line, outside));
        }
      }
      places_.push_back({line.id, line.parent, line.mountpoint});
    }
    FERRY_TRY(order_, mount_order(places_));
    root_ = &lines_[order_.front()];
    return check_root();
  }

  Result<void> describe_all() {
    // Entries stand in the reverse order of mountinfo, the root last; with us the order in which the
    // mounts can be taken down, which is the same unless mounts hide each other.
    for (auto it = order_.rbegin(); it != order_.rend(); ++it) {
      FERRY_CHECK(add(lines_[*it]));
    }
    return {};
  }

  [[nodiscard]] const std::vector<Line>& lines() const { return lines_; }
  [[nodiscard]] const std::vector<std::size_t>& order() const { return order_; }
  [[nodiscard]] const Line& root() const { return *root_; }
  [[nodiscard]] const TreeNamespace& ns() const { return ns_; }
  [[nodiscard]] Inside& inside() const { return inside_; }
  // The filesystem that all mount namespaces of the tree have their root on.
  void set_tree_root(const Line* root) { tree_root_ = root; }

 private:
  // The path of a cgroup mount as our own cgroup namespace has it.  `outside`: all lines, read on first demand.
  Result<void> see_from_outside(Line& line, std::vector<Line>& outside) const {
    if (outside.empty()) {
      FERRY_TRY(const std::string text, sys::read_file_at(ns_.task->proc.get(), "mountinfo"));
      FERRY_TRY(outside, parse_mountinfo(text));
    }
    const auto same =
        std::find_if(outside.begin(), outside.end(), [&](const Line& other) { return other.id == line.id; });
    if (same != outside.end()) {
      line.root = same->root;
    }
    return {};
  }

  // --skip-mnt, with what is mounted on it.
  Result<void> skip() {
    const auto& wanted = context_.options.skip_mounts;
    std::set<int> skipped;
    for (bool again = true; again;) {
      again = false;
      for (const Line& line : lines_) {
        const bool named = std::find(wanted.begin(), wanted.end(), line.mountpoint) != wanted.end();
        if ((named || skipped.contains(line.parent)) && skipped.insert(line.id).second) {
          again = true;
        }
      }
    }
    std::erase_if(lines_, [&](const Line& line) { return skipped.contains(line.id); });
    if (lines_.empty()) {
      return fail(Kind::invalid, "--skip-mnt leaves no mount of {}", ns_.task->subject());
    }
    return {};
  }

  // A task whose root lies below another mount would see another tree than the one that is kept.
  Result<void> check_root() {
    if (root_->mountpoint != "/") {
      return fail(Kind::unsupported, "the mount namespace of {} has no mount for its root", ns_.task->subject());
    }
    for (const Line& line : lines_) {
      if (&line != root_ && line.mountpoint == "/") {
        return fail(Kind::unsupported, "{} lies over the root directory, which cannot be carried", describe(line));
      }
    }
    for (const auto& task : context_.tasks) {
      if (task->zombie || task->ids == nullptr || namespace_of(*task->ids, NsKind::mnt) != ns_.id) {
        continue;
      }
      FERRY_TRY(const std::uint64_t mount, mount_id_at(task->proc.get(), "root"));
      if (std::none_of(lines_.begin(), lines_.end(),
                       [&](const Line& line) { return static_cast<std::uint64_t>(line.id) == mount; })) {
        return fail(Kind::unsupported,
                    "the root directory of {} lies below a mount that was made over the root, or on a mount that was "
                    "detached; that cannot be carried",
                    task->subject());
      }
    }
    return {};
  }

  static Result<std::uint64_t> mount_id_at(int directory, const std::string& path) {
    struct statx st;
    if (::statx(directory, path.c_str(), AT_NO_AUTOMOUNT, STATX_MNT_ID, &st) != 0) {
      return sys_fail(fmt::format("statx({})", path));
    }
    return static_cast<std::uint64_t>(st.stx_mnt_id);
  }

  // The key under which the caller knows a mount.
  std::optional<std::string> declared_key(const Line& line) const {
    for (const ExternalMount& external : context_.options.external_mounts) {
      if (external.key == line.mountpoint) {
        return external.value;
      }
    }
    return external_key(context_.options, "mnt", line.mountpoint);
  }

  // The name under which the caller knows a block device: --external dev[MAJOR/MINOR]:NAME.
  std::optional<std::string> declared_device(const Line& line) const {
    return external_key(context_.options, "dev", fmt::format("{}/{}", line.dev >> 20, line.dev & 0xfffff));
  }

  // Where the same files are in our own mount namespace.
  // Of several the one that hangs on the same master, and that at the same place.
  const Line* line_here(const Line& line) const {
    const auto& mounts = context_.host.mounts();
    const Line* best = nullptr;
    int best_rank = -1;
    for (auto own = mounts.rbegin(); own != mounts.rend(); ++own) {
      if (own->dev != line.dev || !(line.root == own->root || is_below(line.root, own->root))) {
        continue;
      }
      // Something else may be mounted over that place.
      const Result<std::uint64_t> visible = visible_mount_id(AT_FDCWD, own->mountpoint);
      const bool same_master = own->master == line.master || own->shared == line.master;
      const int rank = (same_master ? 2 : 0) + (own->mountpoint == line.mountpoint ? 1 : 0);
      if (rank > best_rank && visible.has_value() && *visible == static_cast<std::uint64_t>(own->id)) {
        best = &*own;
        best_rank = rank;
      }
    }
    return best;
  }

  static std::string path_on(const Line& own, const Line& line) {
    const std::string rest = line.root == own.root ? "" : relative_to(line.root, own.root);
    return rest.empty() ? own.mountpoint : own.mountpoint + (own.mountpoint == "/" ? "" : "/") + rest;
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
    if (&line != root_ || (tree_root_ != nullptr && line.dev != tree_root_->dev)) {
      FERRY_CHECK(find_source(line, kind, entry));
    }
    mark_outer_peers(line, entry);
    context_.set.add({image::Type::mountpoints, ns_.id}, std::move(entry));
    return {};
  }

  // A mount that is a peer of one of ours has to become one again.
  void mark_outer_peers(const Line& line, pb::MntEntry& entry) const {
    for (const Line& own : context_.host.mounts()) {
      if (line.shared != 0 && own.shared == line.shared && (line.root == own.root || is_below(line.root, own.root))) {
        entry.set_ferry_peer(own.mountpoint);
        return;
      }
    }
  }

  // Says in the entry where a restore gets the mount from, or refuses.
  Result<void> find_source(const Line& line, const FsKind& kind, pb::MntEntry& entry) {
    if (line.mountpoint.ends_with(kDeleted)) {
      return fail(Kind::unsupported, "{}: its mount point was deleted, so it cannot be mounted there again",
                  describe(line));
    }
    if (const auto key = declared_key(line)) {
      entry.set_ext_key(*key);
      return {};
    }
    if (line.type == "nsfs") {
      return find_namespace(line, entry);
    }
    if (context_.host.queues().is_of_other(line.dev)) {
      return fail(Kind::unsupported, "{}: it shows an ipc namespace that is not that of the root task", describe(line));
    }
    if (own_cgroups_.contains(line.id)) {
      return {};
    }
    if (kind.type == pb::FSTYPE_AUTOFS) {
      return fail(Kind::unsupported,
                  "{}: the daemon behind an automount point cannot be connected to it again; "
                  "unmount it, or skip it (--skip-mnt {})",
                  describe(line), line.mountpoint);
    }
    const Line& base = tree_root_ != nullptr ? *tree_root_ : *root_;
    const bool on_root = line.dev == base.dev && is_below(line.root, base.root);
    if (line.root.ends_with(kDeleted) && (on_root || fresh_tmpfs(line, kind) != nullptr)) {
      return keep_deleted(line, entry);
    }
    // A bind of a part of the root, unless it hangs on a mount of the host that the root does not hang on.
    if (on_root && (line.master == 0 || line.master == base.master || has_group(line.master))) {
      return {};
    }
    if (!line.root.ends_with(kDeleted)) {
      if (const Line* own = line_here(line)) {
        entry.set_ext_key(kAutogenerated);
        entry.set_source(path_on(*own, line));
        return {};
      }
    }
    if (const auto name = declared_device(line)) {
      entry.set_ext_key(kExternalDevice);
      entry.set_source(fmt::format("dev[{}]", *name));
      entry.set_fsname(line.type);
      return {};
    }
    if (on_root) {
      return {};
    }
    switch (kind.making) {
      case Making::fresh:
        if (kind.type == pb::FSTYPE_TMPFS && fresh_tmpfs(line, kind) == nullptr) {
          break;
        }
        return kind.type == pb::FSTYPE_DEVPTS && line.root != "/" ? check_terminal(line) : Result<void>();
      case Making::of_skeleton:
        if (kind.type == pb::FSTYPE_CGROUP || kind.type == pb::FSTYPE_CGROUP2) {
          break;
        }
        return {};
      case Making::of_namespace:
      case Making::of_kernel:
      case Making::of_layers:
        return {};
      case Making::foreign:
        if (enabled(line.type)) {
          entry.set_fstype(pb::FSTYPE_AUTO);
          entry.set_fsname(line.type);
          return {};
        }
        break;
    }
    return fail(Kind::unsupported,
                "{} (device {}:{}, {}) can neither be made again nor found on this host; declare it external "
                "(--external mnt[{}]:KEY) or unmount it",
                describe(line), line.dev >> 20, line.dev & 0xfffff, line.root, line.mountpoint);
  }

  // A terminal is made again for those who hold it open; its name alone is shown by a mount (Docker's /dev/console).
  Result<void> check_terminal(const Line& line) const {
    for (const auto* info : context_.set.list<pb::TtyInfoEntry>({image::Type::tty_info})) {
      if (info->has_pty() && line.root == fmt::format("/{}", info->pty().index())) {
        return {};
      }
    }
    return fail(Kind::unsupported,
                "{} shows terminal {}, which no process of the tree holds open: it could not be made again",
                describe(line), line.root);
  }

  bool has_group(std::uint32_t id) const {
    return std::any_of(lines_.begin(), lines_.end(), [&](const Line& line) { return line.shared == id; });
  }

  // --enable-fs: types that the caller vouches for.
  bool enabled(const std::string& type) const {
    const auto& list = context_.options.enable_fs;
    return std::any_of(list.begin(), list.end(), [&](const std::string& t) { return t == type || t == "all"; });
  }

  // A namespace that is bound to a file.
  Result<void> find_namespace(const Line& line, pb::MntEntry& entry) {
    for (const NsKind kind : kAllNsKinds) {
      for (const TreeNamespace& n : tree_namespaces(context_, kind)) {
        FERRY_TRY(const std::uint64_t inode, namespace_inode(n.task->pid, ns_name(kind)));
        if (line.root == fmt::format("{}:[{}]", ns_name(kind), inode)) {
          entry.set_ferry_ns_id(n.id);
          return {};
        }
      }
    }
    if (const Line* own = line_here(line); own != nullptr && own->root == line.root) {
      entry.set_ext_key(kAutogenerated);
      entry.set_source(own->mountpoint);
      return {};
    }
    return fail(Kind::unsupported, "{} shows the namespace {}, in which no task of the tree lives", describe(line),
                line.root);
  }

  // A mount of a file or directory that was deleted: what it is goes into the entry.
  Result<void> keep_deleted(const Line& line, pb::MntEntry& entry) {
    const auto open_root = [&]() -> Result<UniqueFd> {
      FERRY_TRY(UniqueFd file, sys::open(line.mountpoint, O_PATH | O_NOFOLLOW));
      FERRY_TRY(const std::uint64_t id, visible_mount_id(file.get(), ""));
      if (id != static_cast<std::uint64_t>(line.id)) {
        return fail(Kind::unsupported, "it shows {}, which was deleted, and lies below another mount", line.root);
      }
      return file;
    };
    FERRY_TRY(const UniqueFd file, inside_.get<UniqueFd>(open_root).during("{}", describe(line)));
    FERRY_TRY(const struct stat st, sys::stat_fd(file.get(), describe(line)));
    pb::FerryNode& node = *entry.mutable_ferry_deleted();
    node.set_path(line.root.substr(0, line.root.size() - kDeleted.size()));
    node.set_mode(st.st_mode);
    node.set_uid(st.st_uid);
    node.set_gid(st.st_gid);
    node.set_rdev(st.st_rdev);
    if (!S_ISREG(st.st_mode)) {
      return {};
    }
    if (static_cast<std::uint64_t>(st.st_size) > context_.options.ghost_limit) {
      return fail(Kind::unsupported, "{} shows {}, which was deleted and holds {} bytes, more than --ghost-limit",
                  describe(line), node.path(), st.st_size);
    }
    FERRY_TRY(std::string content, sys::read_file(fmt::format("/proc/self/fd/{}", file.get())));
    node.set_content(std::move(content));
    return {};
  }

  // The mount in the tree that shows the whole of a tmpfs.
  const Line* fresh_tmpfs(const Line& line, const FsKind& kind) const {
    const auto whole = std::find_if(lines_.begin(), lines_.end(),
                                    [&](const Line& other) { return other.dev == line.dev && other.root == "/"; });
    return kind.type == pb::FSTYPE_TMPFS && whole != lines_.end() ? &*whole : nullptr;
  }

  DumpContext& context_;
  TreeNamespace ns_;
  Inside& inside_;
  std::vector<Line> lines_;
  std::vector<Place> places_;
  std::vector<std::size_t> order_;
  std::set<int> own_cgroups_;  // cgroup mounts within the tree's cgroup namespace
  const Line* root_ = nullptr;
  const Line* tree_root_ = nullptr;
};

// A mount that a restore could not make a slave again.
Result<void> check_masters(const image::Set& set) {
  std::vector<Placed> all;
  for (const image::Name& name : set.names(image::Type::mountpoints)) {
    for (const auto* entry : set.list<pb::MntEntry>(name)) {
      all.push_back({entry, -1, entry->mountpoint() == "/" || !entry->ext_key().empty(), entry->has_ferry_peer()});
    }
  }
  for (const Placed& p : all) {
    if (needs_donor(p, all) && donor_of(p, all) == nullptr) {
      return fail(Kind::unsupported,
                  "mount {} is a slave of a mount outside of the tree that none of its external mounts brings along "
                  "(master:{}); make it private, or declare it external (--external mnt[{}]:KEY)",
                  p.entry->mountpoint(), p.entry->master_id(), p.entry->mountpoint());
    }
  }
  return {};
}

}  // namespace

Result<std::uint64_t> visible_mount_id(int directory, const std::string& path) {
  struct statx st;
  // AT_NO_AUTOMOUNT: looking must not mount anything.
  const int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (path.empty() ? AT_EMPTY_PATH : 0);
  if (::statx(directory, path.c_str(), flags, STATX_MNT_ID, &st) != 0) {
    return sys_fail(fmt::format("statx({})", path));
  }
  return static_cast<std::uint64_t>(st.stx_mnt_id);
}

Result<void> collect(DumpContext& context) {
  std::vector<Collector> collectors;
  for (const TreeNamespace& ns : tree_namespaces(context, NsKind::mnt)) {
    FERRY_TRY(Inside* const inside, context.host.inside_of(ns.task->pid));
    collectors.emplace_back(context, ns, *inside);
  }
  if (collectors.empty()) {
    return {};
  }
  if (collectors.front().ns().task != &context.root()) {
    return fail(Kind::unsupported,
                "{} has a mount namespace of its own while the root of the tree ({}) lives in that of the host, which "
                "cannot be carried",
                collectors.front().ns().task->subject(), context.root().subject());
  }
  if (collectors.size() > 1 && !tree_namespaces(context, NsKind::user).empty()) {
    return fail(Kind::unsupported,
                "{} has a mount namespace beside that of {}, in a user namespace, which cannot be carried",
                collectors.back().ns().task->subject(), context.root().subject());
  }
  std::vector<View> views;
  for (Collector& collector : collectors) {
    FERRY_CHECK(collector.read());
    collector.set_tree_root(&collectors.front().root());
    FERRY_CHECK(collector.describe_all());
    views.push_back({collector.ns(), &collector.inside(), &collector.lines(), &collector.order()});
  }
  FERRY_CHECK(check_masters(context.set));
  FERRY_CHECK(binfmt_misc::collect(context, views));
  return save_tmpfs(context, views);
}

}  // namespace ferry::state::mount
