#include "state/inotify/watched_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "state/mount/mountinfo.h"
#include "sys/device.h"
#include "sys/file.h"

namespace ferry::state::inotify {
namespace {

constexpr std::size_t kMostEntries = 1'000'000;  // of one filesystem; a second or two

// Is it really that file that the path leads to?
bool leads_to(int root, const std::string& path, const struct stat& wanted) {
  const auto fd = sys::open_in_root(root, path, O_PATH | O_NOFOLLOW);
  struct stat st {};
  return fd.has_value() && ::fstat(fd->get(), &st) == 0 && st.st_ino == wanted.st_ino && st.st_dev == wanted.st_dev;
}

// The file itself, whatever names it has; none, with errno, if its filesystem cannot tell.
UniqueFd by_handle(int mount, const InotifyWatch& watch) {
  constexpr std::size_t most = 128;  // MAX_HANDLE_SZ, name_to_handle_at(2)
  if (watch.handle.empty() || watch.handle.size() > most) {
    errno = EOPNOTSUPP;
    return {};
  }
  alignas(file_handle) unsigned char room[sizeof(file_handle) + most] = {};
  auto* handle = reinterpret_cast<file_handle*>(room);
  handle->handle_bytes = static_cast<unsigned>(watch.handle.size());
  handle->handle_type = static_cast<int>(watch.handle_type);
  std::memcpy(room + sizeof(file_handle), watch.handle.data(), watch.handle.size());
  return UniqueFd(::open_by_handle_at(mount, handle, O_PATH | O_CLOEXEC));
}

// Nobody gets hold of a group or device any more that was removed, but the kernel leaves its watch where it is (kernfs,
// fs/kernfs/mount.c: the handle of a node that is not active is stale).
bool has_removable_nodes(int mount) {
  struct statfs fs {};
  return ::fstatfs(mount, &fs) == 0 &&
         (fs.f_type == CGROUP_SUPER_MAGIC || fs.f_type == CGROUP2_SUPER_MAGIC || fs.f_type == SYSFS_MAGIC);
}

// Depth first, without leaving the filesystem.
class Search {
 public:
  Search(const InotifyWatch& watch, dev_t device) : watch_(watch), device_(device) {}

  std::optional<std::string> below(int directory, const std::string& path) {
    auto names = sys::list_directory(directory, ".");
    if (!names.has_value()) {
      return std::nullopt;
    }
    for (const std::string& name : *names) {
      struct stat st {};
      if (++seen_ > kMostEntries || ::fstatat(directory, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
        continue;
      }
      std::string full = path == "/" ? "/" + name : path + "/" + name;
      if (st.st_ino == watch_.inode) {
        return full;
      }
      if (!S_ISDIR(st.st_mode) || st.st_dev != device_) {
        continue;
      }
      const auto fd = sys::open_at(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (!fd.has_value()) {
        continue;
      }
      if (auto found = below(fd->get(), full)) {
        return found;
      }
    }
    return std::nullopt;
  }

 private:
  const InotifyWatch& watch_;
  dev_t device_;
  std::size_t seen_ = 0;
};

}  // namespace

Result<PathFinder::View*> PathFinder::view_of(int proc) {
  FERRY_TRY(const UniqueFd ns, sys::open_at(proc, "ns/mnt", O_RDONLY));
  FERRY_TRY(const auto st, sys::stat_fd(ns.get(), "ns/mnt"));
  View& view = views_[st.st_ino];
  if (!view.root) {
    FERRY_TRY(view.root, sys::open_at(proc, "root", O_PATH | O_DIRECTORY));
    FERRY_TRY(const std::string text, sys::read_file_at(proc, "mountinfo"));
    FERRY_TRY(const auto mounts, mount::parse_mountinfo(text));
    for (const mount::Line& line : mounts) {
      auto top = sys::open_in_root(view.root.get(), line.mountpoint, O_RDONLY | O_NONBLOCK);
      if (top.has_value()) {
        view.mounts.push_back({line.id, line.dev, line.mountpoint, std::move(*top)});
      }
    }
  }
  return &view;
}

Result<Found> PathFinder::find(int proc, const InotifyWatch& watch, const std::string& subject) {
  FERRY_TRY(View * view, view_of(proc));
  std::string& known = view->paths[{watch.dev, watch.inode}];
  if (!known.empty()) {
    const auto fd = sys::open_in_root(view->root.get(), known, O_PATH | O_NOFOLLOW);
    struct stat st {};
    if (fd.has_value() && ::fstat(fd->get(), &st) == 0 && st.st_ino == watch.inode &&
        sys::kernel_device(st.st_dev) == watch.dev) {
      return Found{known, {}};
    }
  }
  Found nameless;
  for (const Mount& m : view->mounts) {
    if (m.dev != watch.dev) {
      continue;
    }
    UniqueFd file = by_handle(m.top.get(), watch);
    if (!file && errno == ESTALE && has_removable_nodes(m.top.get())) {
      return Found{{}, {}, true};
    }
    struct stat st {};
    if (!file || ::fstat(file.get(), &st) != 0) {
      continue;
    }
    FERRY_TRY(std::string path, sys::read_link(fmt::format("/proc/self/fd/{}", file.get())));
    if (leads_to(view->root.get(), path, st)) {
      return Found{std::move(path), {}};
    }
    if (!nameless.nameless && path.ends_with(" (deleted)")) {
      nameless = {std::move(path), std::move(file)};
    }
  }
  if (nameless.nameless) {
    return nameless;
  }
  for (const Mount& m : view->mounts) {
    struct stat st {};
    if (m.dev != watch.dev || ::fstat(m.top.get(), &st) != 0) {
      continue;
    }
    if (st.st_ino == watch.inode && sys::kernel_device(st.st_dev) == watch.dev) {
      return Found{m.mountpoint, {}};
    }
    if (S_ISDIR(st.st_mode)) {
      if (auto path = Search(watch, st.st_dev).below(m.top.get(), m.mountpoint)) {
        known = *path;
        return Found{std::move(*path), {}};
      }
    }
  }
  return fail(Kind::unsupported, "{}: it watches a file (inode {}, device {}:{}) that has no name any more", subject,
              watch.inode, watch.dev >> 20, watch.dev & 0xfffff);
}

Result<std::string> PathFinder::mountpoint(int proc, int id, const std::string& subject) {
  FERRY_TRY(const View* view, view_of(proc));
  for (const Mount& m : view->mounts) {
    if (m.id == id) {
      return m.mountpoint;
    }
  }
  return fail(Kind::unsupported, "{}: it watches mount {}, which is none of the task's", subject, id);
}

Result<std::string> PathFinder::mountpoint_of(int proc, std::uint32_t device, const std::string& subject) {
  FERRY_TRY(const View* view, view_of(proc));
  for (const Mount& m : view->mounts) {
    if (m.dev == device) {
      return m.mountpoint;
    }
  }
  return fail(Kind::unsupported, "{}: it watches filesystem {}:{}, which the task has not mounted", subject,
              device >> 20, device & 0xfffff);
}

}  // namespace ferry::state::inotify
