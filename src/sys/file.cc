#include "sys/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

namespace ferry::sys {

Result<UniqueFd> open_at(int directory, const std::string& path, int flags, mode_t mode) {
  int fd = -1;
  do {
    fd = ::openat(directory, path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    return sys_fail(fmt::format("open({})", path));
  }
  return UniqueFd(fd);
}

Result<UniqueFd> open_in_root(int root, const std::string& path, int flags, mode_t mode) {
  open_how how{};
  how.flags = static_cast<__u64>(flags | O_CLOEXEC);
  how.mode = mode;
  how.resolve = RESOLVE_IN_ROOT;
  const long fd = ::syscall(SYS_openat2, root, path.c_str(), &how, sizeof how);
  if (fd < 0) {
    return sys_fail(fmt::format("open({})", path));
  }
  return UniqueFd(static_cast<int>(fd));
}

Result<std::string> read_all(int fd, std::string_view subject) {
  std::string out;
  std::size_t used = 0;
  for (;;) {
    if (out.size() - used < 4096) {
      out.resize(out.empty() ? 8192 : out.size() * 4);
    }
    const ssize_t n = ::read(fd, out.data() + used, out.size() - used);
    if (n < 0) {
      if (errno == EINTR) {
        continue;
      }
      return sys_fail(fmt::format("read({})", subject));
    }
    if (n == 0) {
      out.resize(used);
      return out;
    }
    used += static_cast<std::size_t>(n);
  }
}

Result<std::string> read_file_at(int directory, const std::string& path) {
  FERRY_TRY(const UniqueFd fd, open_at(directory, path, O_RDONLY));
  return read_all(fd.get(), path);
}

Result<void> write_all(int fd, const void* bytes, std::size_t size, std::string_view subject) {
  const char* at = static_cast<const char*>(bytes);
  while (size > 0) {
    const ssize_t n = ::write(fd, at, size);
    if (n < 0) {
      if (errno == EINTR) {
        continue;
      }
      return sys_fail(fmt::format("write({})", subject));
    }
    at += n;
    size -= static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> read_exactly(int fd, void* bytes, std::size_t size, std::string_view subject) {
  char* at = static_cast<char*>(bytes);
  while (size > 0) {
    const ssize_t n = ::read(fd, at, size);
    if (n < 0) {
      if (errno == EINTR) {
        continue;
      }
      return sys_fail(fmt::format("read({})", subject));
    }
    if (n == 0) {
      return fail(Kind::corrupt, "{} ends {} bytes too early", subject, size);
    }
    at += n;
    size -= static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> pread_exactly(int fd, void* bytes, std::size_t size, std::uint64_t offset, std::string_view subject) {
  char* at = static_cast<char*>(bytes);
  while (size > 0) {
    const ssize_t n = ::pread(fd, at, size, static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) {
        continue;
      }
      return sys_fail(fmt::format("pread({}, offset {})", subject, offset));
    }
    if (n == 0) {
      return fail(Kind::corrupt, "{} ends {} bytes too early, at offset {}", subject, size, offset);
    }
    at += n;
    offset += static_cast<std::uint64_t>(n);
    size -= static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> write_file_at(int directory, const std::string& path, std::string_view text) {
  FERRY_TRY(const UniqueFd fd, open_at(directory, path, O_WRONLY));
  const ssize_t n = ::write(fd.get(), text.data(), text.size());
  if (n != static_cast<ssize_t>(text.size())) {
    return sys_fail(fmt::format("write(\"{}\" to {})", text, path));
  }
  return {};
}

Result<std::string> read_link_at(int directory, const std::string& path) {
  std::string out(4096, '\0');
  const ssize_t n = ::readlinkat(directory, path.c_str(), out.data(), out.size());
  if (n < 0) {
    return sys_fail(fmt::format("readlink({})", path));
  }
  out.resize(static_cast<std::size_t>(n));
  return out;
}

Result<struct stat> stat_fd(int fd, std::string_view subject) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) {
    return sys_fail(fmt::format("fstat({})", subject));
  }
  return st;
}

Result<int> mount_of(int fd) {
  struct statx st {};
  if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_MNT_ID, &st) != 0) {
    return sys_fail("statx(STATX_MNT_ID)");
  }
  if ((st.stx_mask & STATX_MNT_ID) == 0) {
    return fail(Kind::unsupported, "this kernel does not tell the mount of a file (statx(2), since Linux 5.8)");
  }
  return static_cast<int>(st.stx_mnt_id);
}

Result<UniqueFd> duplicate(int fd) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (copy < 0) {
    return sys_fail(fmt::format("fcntl({}, F_DUPFD_CLOEXEC)", fd));
  }
  return UniqueFd(copy);
}

Result<std::vector<std::string>> list_directory(int directory, const std::string& path) {
  FERRY_TRY(UniqueFd fd, open_at(directory, path, O_RDONLY | O_DIRECTORY));
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(fd.get()), ::closedir);
  if (dir == nullptr) {
    return sys_fail(fmt::format("fdopendir({})", path));
  }
  (void)fd.release();  // fdopendir(3) took it
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") {
      names.emplace_back(name);
    }
    errno = 0;
  }
  if (errno != 0) {
    return sys_fail(fmt::format("readdir({})", path));
  }
  return names;
}

}  // namespace ferry::sys
