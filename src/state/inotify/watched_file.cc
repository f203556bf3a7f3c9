#include "state/inotify/watched_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstring>
#include <optional>

#include "state/mount/mountinfo.h"
#include "sys/file.h"

namespace ferry::state::inotify {
namespace {

constexpr std::size_t kMostEntries = 1'000'000;  // of one filesystem; a second or two

std::uint32_t kernel_device(dev_t dev) { return major(dev) << 20 | minor(dev); }

// Is it really that file that the path leads to?
bool leads_to(int root, const std::string& path, const struct stat& wanted) {
  const auto fd = sys::open_in_root(root, path, O_PATH | O_NOFOLLOW);
  struct stat st {};
  return fd.has_value() && ::fstat(fd->get(), &st) == 0 && st.st_ino == wanted.st_ino && st.st_dev == wanted.st_dev;
}

std::optional<std::string> by_handle(int root, int mount, const InotifyWatch& watch) {
  constexpr std::size_t most = 128;  // MAX_HANDLE_SZ, name_to_handle_at(2)
  if (watch.handle.empty() || watch.handle.size() > most) {
    return std::nullopt;
  }
  alignas(file_handle) unsigned char room[sizeof(file_handle) + most] = {};
  auto* handle = reinterpret_cast<file_handle*>(room);
  handle->handle_bytes = static_cast<unsigned>(watch.handle.size());
  handle->handle_type = static_cast<int>(watch.handle_type);
  std::memcpy(room + sizeof(file_handle), watch.handle.data(), watch.handle.size());
  const UniqueFd fd(::open_by_handle_at(mount, handle, O_PATH | O_CLOEXEC));
  struct stat st {};
  if (!fd || ::fstat(fd.get(), &st) != 0) {
    return std::nullopt;
  }
  const auto path = sys::read_link(fmt::format("/proc/self/fd/{}", fd.get()));
  if (!path.has_value() || !leads_to(root, *path, st)) {
    return std::nullopt;
  }
  return *path;
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

Result<std::string> find_path(const DumpTask& task, const InotifyWatch& watch, const std::string& subject) {
  FERRY_TRY(const UniqueFd root, sys::open_at(task.proc.get(), "root", O_PATH | O_DIRECTORY));
  FERRY_TRY(const std::string text, sys::read_file_at(task.proc.get(), "mountinfo"));
  FERRY_TRY(const auto mounts, mount::parse_mountinfo(text));
  for (const bool search : {false, true}) {
    for (const mount::Line& line : mounts) {
      if (line.dev != watch.dev) {
        continue;
      }
      const auto top = sys::open_in_root(root.get(), line.mountpoint, O_RDONLY);
      struct stat st {};
      if (!top.has_value() || ::fstat(top->get(), &st) != 0) {
        continue;
      }
      if (!search) {
        if (auto path = by_handle(root.get(), top->get(), watch)) {
          return std::move(*path);
        }
        continue;
      }
      if (st.st_ino == watch.inode && kernel_device(st.st_dev) == watch.dev) {
        return line.mountpoint;
      }
      if (S_ISDIR(st.st_mode)) {
        if (auto path = Search(watch, st.st_dev).below(top->get(), line.mountpoint)) {
          return std::move(*path);
        }
      }
    }
  }
  return fail(Kind::unsupported, "{}: it watches a file (inode {}, device {}:{}) that has no name any more", subject,
              watch.inode, watch.dev >> 20, watch.dev & 0xfffff);
}

}  // namespace ferry::state::inotify
