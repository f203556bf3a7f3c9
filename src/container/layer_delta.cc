#include "container/layer_delta.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <ctime>
#include <filesystem>
#include <memory>
#include <sstream>

#include "base/unique_fd.h"
#include "container/small_file.h"

namespace ferry::container {
namespace {

// Two changes within one tick of the kernel's clock (10 ms at HZ=100) have the same stamp, so what was
// stamped shortly before the first look may have changed after it unnoticed.
constexpr std::int64_t kTick = 20'000'000;

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

std::int64_t to_ns(const timespec& time) { return time.tv_sec * 1'000'000'000 + time.tv_nsec; }

std::int64_t coarse_now() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  return to_ns(now);
}

bool is_opaque(int directory) {
  char value = 0;
  return ::fgetxattr(directory, "trusted.overlay.opaque", &value, 1) == 1 && value == 'y';
}

LayerFile file_of(const struct stat& info) {
  return {.ino = info.st_ino,
          .size = info.st_size,
          .ctime_ns = to_ns(info.st_ctim),
          .mode = info.st_mode,
          .links = static_cast<std::uint32_t>(info.st_nlink),
          .whiteout = S_ISCHR(info.st_mode) && info.st_rdev == makedev(0, 0),
          .opaque = false};
}

Result<void> look_into(UniqueFd fd, const std::string& path, LayerLook& look);

// What vanishes while we look is as if it had not been there.
Result<void> look_at_name(int parent, const std::string& name, const std::string& path, bool below, LayerLook& look) {
  struct stat info {};
  if (::fstatat(parent, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return {};
    }
    return sys_fail(fmt::format("fstatat({})", path));
  }
  LayerFile file = file_of(info);
  if (!S_ISDIR(info.st_mode)) {
    look.files.emplace(path, file);
    return {};
  }
  UniqueFd directory(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return {};
    }
    return sys_fail(fmt::format("openat({})", path));
  }
  file.opaque = is_opaque(directory.get());
  look.files.emplace(path, file);
  return below ? look_into(std::move(directory), path, look) : Result<void>();
}

Result<void> look_into(UniqueFd fd, const std::string& path, LayerLook& look) {
  const Directory directory(::fdopendir(fd.get()));
  if (!directory) {
    return sys_fail(fmt::format("fdopendir({})", path));
  }
  const int own = fd.release();  // closed with the stream
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr) {
      return errno == 0 ? Result<void>() : Result<void>(sys_fail(fmt::format("readdir({})", path)));
    }
    const std::string name = entry->d_name;
    if (name != "." && name != "..") {
      FERRY_CHECK(look_at_name(own, name, path.empty() ? name : path + "/" + name, true, look));
    }
  }
}

bool is_below(const std::string& path, const std::vector<std::string>& removed) {
  for (const std::string& parent : removed) {
    if (path.size() > parent.size() && path.starts_with(parent) && path[parent.size()] == '/') {
      return true;
    }
  }
  return false;
}

bool same_file(const LayerFile& a, const LayerFile& b) {
  return a.ino == b.ino && (a.mode & S_IFMT) == (b.mode & S_IFMT) && a.opaque == b.opaque && a.whiteout == b.whiteout;
}

Result<UniqueFd> open_below(int root, const std::string& path, int flags) {
  open_how how{};
  how.flags = static_cast<std::uint64_t>(flags) | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how)));
  if (!fd) {
    return sys_fail(fmt::format("openat2({})", path));
  }
  return fd;
}

Result<void> remove_tree(int parent, const std::string& name) {
  if (::unlinkat(parent, name.c_str(), 0) == 0 || errno == ENOENT) {
    return {};
  }
  if (errno != EISDIR && errno != EPERM) {
    return sys_fail(fmt::format("unlinkat({})", name));
  }
  UniqueFd fd(::openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) {
    return sys_fail(fmt::format("openat({})", name));
  }
  const Directory directory(::fdopendir(fd.get()));
  if (!directory) {
    return sys_fail(fmt::format("fdopendir({})", name));
  }
  const int own = fd.release();
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(directory.get())) {
    if (std::string_view(entry->d_name) != "." && std::string_view(entry->d_name) != "..") {
      names.emplace_back(entry->d_name);
    }
  }
  for (const std::string& child : names) {
    FERRY_CHECK(remove_tree(own, child));
  }
  if (::unlinkat(parent, name.c_str(), AT_REMOVEDIR) != 0) {
    return sys_fail(fmt::format("unlinkat({}, AT_REMOVEDIR)", name));
  }
  return {};
}

}  // namespace

Result<LayerLook> look_at_layer(const std::string& upper_dir) {
  LayerLook look;
  look.begun_ns = coarse_now();
  UniqueFd fd(::open(upper_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) {
    return sys_fail(fmt::format("open({})", upper_dir));
  }
  FERRY_CHECK(look_into(std::move(fd), {}, look).during("looking at {}", upper_dir));
  return look;
}

Result<LayerLook> look_at_path(const std::string& upper_dir, const std::string& path, bool below) {
  LayerLook look;
  look.begun_ns = coarse_now();
  const UniqueFd root(::open(upper_dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root) {
    return sys_fail(fmt::format("open({})", upper_dir));
  }
  const std::filesystem::path whole(path);
  const std::string parent = whole.parent_path();
  const auto folder = open_below(root.get(), parent.empty() ? "." : parent, O_PATH | O_DIRECTORY);
  if (!folder) {
    // A directory on the way is gone, or something else has its name.
    const int why = folder.error().os_errno;
    return why == ENOENT || why == ENOTDIR || why == ELOOP ? Result<LayerLook>(std::move(look))
                                                           : Result<LayerLook>(tl::unexpected<Error>(folder.error()));
  }
  FERRY_CHECK(look_at_name(folder->get(), whole.filename(), path, below, look).during("looking at {}", upper_dir));
  return look;
}

LayerDelta compare_layers(const LayerLook& before, const LayerLook& now, const std::set<std::string>& mapped) {
  LayerDelta out;
  for (const auto& [path, old] : before.files) {
    if (is_below(path, out.removed)) {
      continue;
    }
    const auto still = now.files.find(path);
    // A whiteout that went away because a file took its place hides nothing any more in the copy.
    const bool replaced = still != now.files.end() && !same_file(old, still->second) && !old.whiteout;
    if ((still == now.files.end() && !old.whiteout) || replaced) {
      out.removed.push_back(path);
    }
  }
  for (const auto& [path, file] : now.files) {
    const auto old = before.files.find(path);
    const bool is_new = old == before.files.end() || !same_file(old->second, file) || is_below(path, out.removed);
    if (file.whiteout) {
      if (is_new && (out.removed.empty() || out.removed.back() != path)) {
        out.removed.push_back(path);
      }
      continue;
    }
    if (is_new && file.opaque && old == before.files.end()) {
      out.removed.push_back(path);  // it hides a directory of the image that the copy still shows
    }
    if (is_new || old->second.ctime_ns != file.ctime_ns || old->second.size != file.size ||
        old->second.mode != file.mode || file.ctime_ns >= before.begun_ns - kTick || mapped.contains(path)) {
      out.changed.push_back(path);
    }
  }
  return out;
}

Result<std::set<std::string>> mapped_files(const std::string& cgroup) {
  FERRY_TRY(const std::string processes, read_small_file(cgroup + "/cgroup.procs"));
  std::set<std::string> out;
  std::istringstream pids(processes);
  std::string pid;
  while (std::getline(pids, pid)) {
    const auto maps = read_small_file(fmt::format("/proc/{}/maps", pid));
    if (!maps) {
      continue;  // a process that has ended maps nothing
    }
    std::istringstream lines(*maps);
    std::string line;
    while (std::getline(lines, line)) {
      // proc(5): address perms offset dev inode pathname
      const auto space = line.find(' ');
      const auto slash = line.find('/');
      if (space == std::string::npos || slash == std::string::npos || line.size() < space + 5 ||
          line[space + 2] != 'w' || line[space + 4] != 's') {
        continue;
      }
      out.insert(line.substr(slash + 1));
    }
  }
  return out;
}

Result<void> remove_paths(const std::string& root, const std::vector<std::string>& paths) {
  const UniqueFd fd(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) {
    return sys_fail(fmt::format("open({})", root));
  }
  for (const std::string& path : paths) {
    const std::filesystem::path whole(path);
    const std::string name = whole.filename();
    if (name.empty() || name == "." || name == "..") {
      return fail(Kind::corrupt, "the change of the layer names \"{}\", which cannot be removed", path);
    }
    const std::string parent = whole.parent_path();
    auto folder = open_below(fd.get(), parent.empty() ? "." : parent, O_RDONLY | O_DIRECTORY);
    if (!folder && (folder.error().os_errno == ENOENT || folder.error().os_errno == ENOTDIR)) {
      continue;  // gone with its parent
    }
    if (!folder) {
      return tl::unexpected<Error>(std::move(folder).error());
    }
    FERRY_CHECK(remove_tree(folder->get(), name).during("removing {} from the twin", path));
  }
  return {};
}

}  // namespace ferry::container
