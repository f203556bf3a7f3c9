#include "state/mount/archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <memory>
#include <set>

#include "base/unique_fd.h"
#include "sys/file.h"

namespace ferry::state::mount {
namespace {

struct Free {
  void operator()(archive* a) const { ::archive_free(a); }
  void operator()(archive_entry* e) const { ::archive_entry_free(e); }
};
using Archive = std::unique_ptr<archive, Free>;
using ArchiveEntry = std::unique_ptr<archive_entry, Free>;

// libarchive hands out an errno or a code of its own (negative).
fail<std::string, const char*> archive_fail(archive* a, const std::string& what) {
  const char* text = ::archive_error_string(a);
  return {Kind::os, "{}: {}", std::string(what), text == nullptr ? "no reason given" : text};
}

la_ssize_t append(archive*, void* client, const void* bytes, std::size_t size) {
  static_cast<std::string*>(client)->append(static_cast<const char*>(bytes), size);
  return static_cast<la_ssize_t>(size);
}

// One filesystem on its way into an archive.  Only directories and regular files are opened: opening a
// device or a FIFO does something.
class Walker {
 public:
  Walker(int root, archive* out)
      : root_(root), out_(out), disk_(::archive_read_disk_new()), entry_(::archive_entry_new()) {}

  Result<void> walk(std::vector<Node>& sockets) {
    FERRY_TRY(const struct stat top, sys::stat_fd(root_, "root of a tmpfs"));
    device_ = top.st_dev;
    FERRY_CHECK(add(root_, ".", ".", top));
    std::vector<std::string> todo{"."};
    while (!todo.empty()) {
      const std::string directory = std::move(todo.back());
      todo.pop_back();
      FERRY_TRY(const UniqueFd fd, sys::open_at(root_, directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
      FERRY_TRY(const auto names, sys::list_directory(fd.get(), "."));
      for (const std::string& name : names) {
        struct stat st;
        if (::fstatat(fd.get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
          return sys_fail(fmt::format("stat({}/{})", directory, name));
        }
        const std::string path = directory + "/" + name;
        if (st.st_dev != device_) {
          continue;
        }
        if (S_ISSOCK(st.st_mode)) {
          sockets.push_back({path, st.st_mode, st.st_uid, st.st_gid});
          continue;
        }
        FERRY_CHECK(add(fd.get(), name, path, st));
        if (S_ISDIR(st.st_mode)) {
          todo.push_back(path);
        }
      }
    }
    return {};
  }

 private:
  Result<void> add(int directory, const std::string& name, const std::string& path, const struct stat& st) {
    archive_entry* entry = entry_.get();
    ::archive_entry_clear(entry);
    ::archive_entry_copy_pathname(entry, path.c_str());
    ::archive_entry_copy_stat(entry, &st);
    UniqueFd file;
    if (S_ISREG(st.st_mode)) {
      FERRY_TRY(file, sys::open_at(directory, name, O_RDONLY | O_NOFOLLOW));
    }
    if (S_ISLNK(st.st_mode)) {
      FERRY_TRY(const std::string target, sys::read_link_at(directory, name));
      ::archive_entry_copy_symlink(entry, target.c_str());
    }
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1) {
      const auto [first, is_new] = links_.emplace(st.st_ino, path);
      if (!is_new) {
        ::archive_entry_copy_hardlink(entry, first->second.c_str());
        ::archive_entry_set_size(entry, 0);
        return write_header(path);
      }
    }
    FERRY_CHECK(add_attributes(directory, name, path, st, file.get()));
    if (!S_ISREG(st.st_mode)) {
      ::archive_entry_set_size(entry, 0);
      return write_header(path);
    }
    return add_content(file.get(), path, st.st_size);
  }

  // Extended attributes, POSIX ACLs among them.  Nearly no file has any.
  Result<void> add_attributes(int directory, const std::string& name, const std::string& path, const struct stat& st,
                              int file) {
    const std::string by_path = fmt::format("/proc/self/fd/{}/{}", directory, name);
    const ssize_t size = ::llistxattr(by_path.c_str(), nullptr, 0);
    if (size <= 0) {
      return {};
    }
    std::string names(static_cast<std::size_t>(size), '\0');
    if (::llistxattr(by_path.c_str(), names.data(), names.size()) != size) {
      return sys_fail(fmt::format("llistxattr({})", path));
    }
    for (std::size_t at = 0; at < names.size(); at = names.find('\0', at) + 1) {
      const std::string key(names.c_str() + at);
      if (key.starts_with("system.posix_acl_")) {
        // libarchive knows how tar writes them; it takes the attributes at the same time.
        UniqueFd opened;
        if (file < 0) {
          FERRY_TRY(opened, sys::open_at(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
        }
        ::archive_entry_xattr_clear(entry_.get());
        // ACLs of a directory are looked for by the path on disk.
        ::archive_entry_copy_sourcepath(entry_.get(), by_path.c_str());
        if (::archive_read_disk_entry_from_file(disk_.get(), entry_.get(), file < 0 ? opened.get() : file, &st) !=
            ARCHIVE_OK) {
          return archive_fail(disk_.get(), fmt::format("reading the attributes of {}", path));
        }
        return {};
      }
      std::string value(65536, '\0');  // xattr(7): no value is larger
      const ssize_t length = ::lgetxattr(by_path.c_str(), key.c_str(), value.data(), value.size());
      if (length < 0) {
        return sys_fail(fmt::format("lgetxattr({}, {})", path, key));
      }
      ::archive_entry_xattr_add_entry(entry_.get(), key.c_str(), value.data(), static_cast<std::size_t>(length));
    }
    return {};
  }

  Result<void> write_header(const std::string& path) {
    if (::archive_write_header(out_, entry_.get()) != ARCHIVE_OK) {
      return archive_fail(out_, fmt::format("archiving {}", path));
    }
    return {};
  }

  // The data between the holes; the writer takes the whole length and drops what lies in holes.
  Result<void> add_content(int file, const std::string& path, off_t size) {
    struct Extent {
      off_t offset, end;
    };
    std::vector<Extent> extents;
    for (off_t at = 0; at < size;) {
      const off_t data = ::lseek(file, at, SEEK_DATA);
      if (data < 0 && errno == ENXIO) {
        break;  // a hole up to the end
      }
      const off_t hole = data < 0 ? -1 : ::lseek(file, data, SEEK_HOLE);
      if (data < 0 || hole < 0) {
        return sys_fail(fmt::format("lseek({})", path));
      }
      extents.push_back({data, std::min(hole, size)});
      at = hole;
    }
    const bool whole = extents.size() == 1 && extents.front().offset == 0 && extents.front().end >= size;
    for (const Extent& e : extents) {
      if (!whole) {
        ::archive_entry_sparse_add_entry(entry_.get(), e.offset, e.end - e.offset);
      }
    }
    if (extents.empty() && size > 0) {
      ::archive_entry_sparse_add_entry(entry_.get(), size, 0);
    }
    FERRY_CHECK(write_header(path));
    off_t position = 0;
    for (const Extent& e : extents) {
      FERRY_CHECK(write_zeros(e.offset - position, path));
      std::string block;
      for (off_t at = e.offset; at < e.end; at += static_cast<off_t>(block.size())) {
        block.resize(static_cast<std::size_t>(std::min<off_t>(e.end - at, 1 << 20)));
        FERRY_CHECK(sys::pread_exactly(file, block.data(), block.size(), static_cast<std::uint64_t>(at), path));
        if (::archive_write_data(out_, block.data(), block.size()) < 0) {
          return archive_fail(out_, fmt::format("archiving {}", path));
        }
      }
      position = e.end;
    }
    return write_zeros(size - position, path);
  }

  Result<void> write_zeros(off_t count, const std::string& path) {
    static constexpr std::array<char, 65536> zeros{};
    while (count > 0) {
      const auto step = static_cast<std::size_t>(std::min<off_t>(count, zeros.size()));
      if (::archive_write_data(out_, zeros.data(), step) < 0) {
        return archive_fail(out_, fmt::format("archiving {}", path));
      }
      count -= static_cast<off_t>(step);
    }
    return {};
  }

  int root_;
  archive* out_;
  Archive disk_;
  ArchiveEntry entry_;
  dev_t device_ = 0;
  std::map<ino_t, std::string> links_;  // the first path of a file with several
};

}  // namespace

Result<Archived> archive_tree(int root) {
  Archived result;
  const Archive out(::archive_write_new());
  // The tree is frozen meanwhile: the fastest level.
  if (::archive_write_add_filter_gzip(out.get()) != ARCHIVE_OK ||
      ::archive_write_set_filter_option(out.get(), "gzip", "compression-level", "1") != ARCHIVE_OK ||
      ::archive_write_set_filter_option(out.get(), "gzip", "timestamp", nullptr) != ARCHIVE_OK ||
      ::archive_write_set_format_pax(out.get()) != ARCHIVE_OK ||
      ::archive_write_set_bytes_in_last_block(out.get(), 1) != ARCHIVE_OK ||
      ::archive_write_open(out.get(), &result.bytes, nullptr, append, nullptr) != ARCHIVE_OK) {
    return archive_fail(out.get(), "making an archive");
  }
  FERRY_CHECK(Walker(root, out.get()).walk(result.sockets));
  if (::archive_write_close(out.get()) != ARCHIVE_OK) {
    return archive_fail(out.get(), "closing an archive");
  }
  return result;
}

Result<void> extract_here(std::string_view bytes, const std::set<std::string>& present) {
  const Archive in(::archive_read_new());
  if (::archive_read_support_filter_gzip(in.get()) != ARCHIVE_OK ||
      ::archive_read_support_format_tar(in.get()) != ARCHIVE_OK ||
      ::archive_read_open_memory(in.get(), bytes.data(), bytes.size()) != ARCHIVE_OK) {
    return archive_fail(in.get(), "opening the archive of a tmpfs");
  }
  const Archive disk(::archive_write_disk_new());
  // An image is input: no path of it may lead out of the filesystem.
  constexpr int kFlags = ARCHIVE_EXTRACT_OWNER | ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_ACL |
                         ARCHIVE_EXTRACT_XATTR | ARCHIVE_EXTRACT_SECURE_SYMLINKS | ARCHIVE_EXTRACT_SECURE_NODOTDOT |
                         ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS;
  if (::archive_write_disk_set_options(disk.get(), kFlags) != ARCHIVE_OK) {
    return archive_fail(disk.get(), "preparing to extract");
  }
  for (;;) {
    archive_entry* entry = nullptr;
    const int result = ::archive_read_next_header(in.get(), &entry);
    if (result == ARCHIVE_EOF) {
      break;
    }
    if (result != ARCHIVE_OK) {
      return fail(Kind::corrupt, "the archive of a tmpfs cannot be read: {}", ::archive_error_string(in.get()));
    }
    const std::string path = ::archive_entry_pathname(entry);
    if (present.contains(path) && ::archive_entry_filetype(entry) != AE_IFDIR) {
      continue;
    }
    if (::archive_write_header(disk.get(), entry) != ARCHIVE_OK) {
      return archive_fail(disk.get(), fmt::format("extracting {}", path));
    }
    for (;;) {
      const void* block = nullptr;
      std::size_t size = 0;
      la_int64_t offset = 0;
      const int read = ::archive_read_data_block(in.get(), &block, &size, &offset);
      if (read == ARCHIVE_EOF) {
        break;
      }
      if (read != ARCHIVE_OK) {
        return fail(Kind::corrupt, "the archive of a tmpfs cannot be read at {}: {}", path,
                    ::archive_error_string(in.get()));
      }
      if (::archive_write_data_block(disk.get(), block, size, offset) != ARCHIVE_OK) {
        return archive_fail(disk.get(), fmt::format("extracting {}", path));
      }
    }
    if (::archive_write_finish_entry(disk.get()) != ARCHIVE_OK) {
      return archive_fail(disk.get(), fmt::format("extracting {}", path));
    }
  }
  // Modes and times of directories are set here, when nothing changes below them any more.
  if (::archive_write_close(disk.get()) != ARCHIVE_OK) {
    return archive_fail(disk.get(), "finishing the extraction");
  }
  return {};
}

Result<void> make_sockets(int root, const std::vector<Node>& sockets) {
  for (const Node& socket : sockets) {
    const std::string parent = socket.path.substr(0, std::max<std::size_t>(socket.path.rfind('/'), 1));
    struct stat before;
    if (::fstatat(root, parent.c_str(), &before, AT_SYMLINK_NOFOLLOW) != 0) {
      return sys_fail(fmt::format("stat({})", parent));
    }
    if (::mknodat(root, socket.path.c_str(), S_IFSOCK | (socket.mode & 07777), 0) != 0 ||
        ::fchownat(root, socket.path.c_str(), socket.uid, socket.gid, AT_SYMLINK_NOFOLLOW) != 0 ||
        ::fchmodat(root, socket.path.c_str(), socket.mode & 07777, 0) != 0) {
      return sys_fail(fmt::format("making socket {}", socket.path));
    }
    const timespec times[2] = {before.st_atim, before.st_mtim};
    if (::utimensat(root, parent.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) {
      return sys_fail(fmt::format("utimensat({})", parent));
    }
  }
  return {};
}

}  // namespace ferry::state::mount
