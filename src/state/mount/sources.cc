#include "state/mount/sources.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state/mount/fstype.h"
#include "state/mount/mount.h"
#include "state/mount/mountinfo.h"
#include "state/nested/nested.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"
#include "sys/mount_api.h"

namespace ferry::state::mount {
namespace {

Making making_of(const pb::MntEntry& entry) { return fs_kind(static_cast<pb::FsType>(entry.fstype())).making; }

// A part of a mounted filesystem as a mount of its own.
Result<UniqueFd> clone_part(int mount, const std::string& below) {
  if (below.empty()) {
    return sys::clone_mount(mount, "");
  }
  FERRY_TRY(const UniqueFd file, sys::open_in_root(mount, below, O_PATH | O_NOFOLLOW));
  return sys::clone_mount(file.get(), "");
}

}  // namespace

Result<void> Sources::prepare() {
  for (const pb::MntEntry* entry : entries_) {
    FERRY_TRY(const auto external, external_path(*entry, context_.options));
    if (!external.has_value() && making_of(*entry) == Making::of_skeleton && !early_.contains(entry->root_dev())) {
      FERRY_TRY(UniqueFd mount, make_superblock_in(context_.root(), *entry).during("mount {}", entry->mountpoint()));
      early_.emplace(entry->root_dev(), std::move(mount));
    }
  }
  FERRY_TRY(proc_, sys::open("/proc", O_PATH | O_DIRECTORY));
  return {};
}

Result<void> Sources::make_stage(int top) {
  top_ = top;
  FERRY_TRY(const UniqueFd fs, sys::fs_open("tmpfs"));
  FERRY_CHECK(sys::fs_create(fs.get()));
  FERRY_TRY(stage_, sys::fs_mount(fs.get(), "tmpfs"));
  FERRY_CHECK(sys::attach_mount(stage_.get(), top, "/"));
  return sys::set_mount_attributes(stage_.get(), 0, 0, MS_PRIVATE);
}

Result<void> Sources::put_on_stage(int mount, const std::string& name) {
  FERRY_TRY(const struct stat st, sys::stat_fd(mount, name));
  if (S_ISDIR(st.st_mode) ? ::mkdirat(stage_.get(), name.c_str(), 0700) != 0
                          : ::mknodat(stage_.get(), name.c_str(), S_IFREG | 0600, 0) != 0) {
    return sys_fail(fmt::format("making {} on the stage", name));
  }
  FERRY_TRY(const UniqueFd place, sys::open_at(stage_.get(), name, O_PATH));
  return sys::attach_mount(mount, place.get(), "the stage");
}

Result<void> Sources::add_root(const pb::MntEntry& root, const std::string& path) {
  Source source;
  FERRY_TRY(source.mount, sys::clone_mount(AT_FDCWD, path));
  FERRY_CHECK(sys::set_mount_attributes(source.mount.get(), 0, 0, MS_PRIVATE));
  FERRY_CHECK(put_on_stage(source.mount.get(), "0"));
  source.root = root.root();
  sources_.emplace(root.root_dev(), std::move(source));
  return {};
}

Result<UniqueFd> Sources::mount_of(const pb::MntEntry& entry, const Asker& asker) {
  FERRY_TRY(const auto external, external_path(entry, context_.options));
  UniqueFd mount;
  if (entry.has_ferry_ns_id()) {
    FERRY_TRY(mount, clone_of_namespace(entry));
  } else if (external.has_value() && entry.ext_key() == kExternalDevice) {
    FERRY_TRY(mount, clone_of_device(entry, *external));
  } else if (external.has_value()) {
    FERRY_TRY(mount, sys::clone_mount(AT_FDCWD, *external));
  } else {
    FERRY_TRY(mount, clone_of_source(entry, asker));
  }
  if (!external.has_value() || entry.master_id() == 0) {
    FERRY_CHECK(sys::set_mount_attributes(mount.get(), 0, 0, MS_PRIVATE));
  }
  return mount;
}

Result<int> Sources::whole(const pb::MntEntry& entry, const Asker& asker) {
  FERRY_TRY(const Source* source, source_of(entry, asker));
  FERRY_TRY(UniqueFd helper, sys::clone_mount(source->mount.get(), ""));
  FERRY_CHECK(put_on_stage(helper.get(), fmt::format("helper{}", helpers_.size())));
  helpers_.push_back(std::move(helper));
  return helpers_.back().get();
}

Result<void> Sources::finish() {
  FERRY_CHECK(remove_names());
  for (auto& [dev, source] : sources_) {
    if (source.read_only_later) {
      FERRY_CHECK(sys::make_superblock_read_only(source.mount.get()).during("mount {}", source.archive_of));
    }
  }
  return {};
}

std::vector<Node> Sources::sockets_of(std::uint32_t dev) const {
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

// A new superblock, or one that the skeleton has made.
Result<UniqueFd> Sources::superblock_of(const pb::MntEntry& entry, const Asker& asker) {
  if (const auto early = early_.find(entry.root_dev()); early != early_.end()) {
    return std::move(early->second);
  }
  if (making_of(entry) == Making::of_layers) {
    // Its options are paths of the tree.
    if (::fchdir(asker.root) != 0 || ::chroot(".") != 0) {
      return sys_fail("chroot(new root)");
    }
    auto made = make_superblock(entry);
    if (::fchdir(top_) != 0 || ::chroot(".") != 0) {
      return sys_fail("chroot(old root)");
    }
    return made;
  }
  if (entry.fstype() == pb::FSTYPE_SYSFS) {
    // Shows the network namespace of whoever mounts it.
    FERRY_TRY(Inside* const inside, context_.nested.inside(context_, NsKind::net, asker.net));
    if (inside != &context_.inside) {
      return inside->get<UniqueFd>([&] { return make_superblock(entry); });
    }
  }
  return make_superblock(entry);
}

Result<const Source*> Sources::source_of(const pb::MntEntry& entry, const Asker& asker) {
  const auto found = sources_.find(entry.root_dev());
  if (found != sources_.end()) {
    return &found->second;
  }
  if (making_of(entry) == Making::foreign && entry.fstype() != pb::FSTYPE_AUTO) {
    return fail(Kind::unsupported, "filesystem {} (type {}) is neither the root nor external, and cannot be made",
                entry.source(), entry.fsname().empty() ? std::to_string(entry.fstype()) : entry.fsname());
  }
  Source source;
  FERRY_TRY(source.mount, superblock_of(entry, asker));
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

Result<UniqueFd> Sources::clone_of_source(const pb::MntEntry& entry, const Asker& asker) {
  FERRY_TRY(const Source* source, source_of(entry, asker));
  const std::string shown = entry.has_ferry_deleted() ? entry.ferry_deleted().path() : entry.root();
  if (!is_below(shown, source->root) && shown != source->root) {
    return fail(Kind::corrupt, "it shows {}, which is not below {} of the same filesystem", shown, source->root);
  }
  const std::string below = relative_to(shown, source->root);
  if (entry.has_ferry_deleted()) {
    return clone_deleted(source->mount.get(), below, entry.ferry_deleted());
  }
  return clone_part(source->mount.get(), below);
}

// The kernel attaches what has a name (d_set_mounted): it gets one until all is in place.
Result<UniqueFd> Sources::clone_deleted(int source, const std::string& path, const pb::FerryNode& node) {
  const std::string parent = path.substr(0, path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  auto opened = sys::open_in_root(source, parent.empty() ? "/" : parent, O_PATH | O_DIRECTORY);
  if (!opened.has_value()) {  // its directory is gone, too
    opened = sys::open_in_root(source, "/", O_PATH | O_DIRECTORY);
  }
  FERRY_TRY(UniqueFd directory, std::move(opened));
  const std::string name = path.substr(parent.empty() ? 0 : parent.size() + 1);
  // Something else may have the name by now.
  const std::string made = ::faccessat(directory.get(), name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0
                               ? fmt::format(".ferry-{}-{}", ::getpid(), name)
                               : name;
  if (S_ISDIR(node.mode())
          ? ::mkdirat(directory.get(), made.c_str(), 0700) != 0
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
  named_.push_back({std::move(directory), made, S_ISDIR(node.mode())});
  if (!mount.has_value()) {
    FERRY_CHECK(remove_names());
  }
  return mount;
}

Result<void> Sources::remove_names() {
  for (const Named& one : named_) {
    if (::unlinkat(one.directory.get(), one.name.c_str(), one.is_directory ? AT_REMOVEDIR : 0) != 0) {
      return sys_fail(fmt::format("removing {}", one.name));
    }
  }
  named_.clear();
  return {};
}

// A block device that the caller names.
Result<UniqueFd> Sources::clone_of_device(const pb::MntEntry& entry, const std::string& device) {
  auto found = sources_.find(entry.root_dev());
  if (found == sources_.end()) {
    Source source;
    FERRY_TRY(source.mount, mount_device(entry, device));
    FERRY_CHECK(put_on_stage(source.mount.get(), std::to_string(sources_.size())));
    found = sources_.emplace(entry.root_dev(), std::move(source)).first;
  }
  return clone_part(found->second.mount.get(), relative_to(entry.root(), "/"));
}

// A namespace bound to a file.
Result<UniqueFd> Sources::clone_of_namespace(const pb::MntEntry& entry) {
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
              sys::open_at(proc_.get(), fmt::format("{}/ns/{}", context_.root().pid, kind), O_RDONLY));
    return sys::clone_mount(own.get(), "");
  }
  return fail(Kind::corrupt, "there is no kind of namespace called {}", kind);
}

}  // namespace ferry::state::mount
