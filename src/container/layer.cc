#include "container/layer.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/unique_fd.h"
#include "container/random_id.h"

namespace ferry::container {
namespace {

// tar knows no sockets.  One is kept as an empty file with this mark.
constexpr const char* kSocketMark = "trusted.ferry.socket";

struct FreeReader {
  void operator()(archive* a) const { archive_read_free(a); }
};
struct FreeWriter {
  void operator()(archive* a) const { archive_write_free(a); }
};
struct FreeEntry {
  void operator()(archive_entry* e) const { archive_entry_free(e); }
};
struct FreeResolver {
  void operator()(archive_entry_linkresolver* r) const { archive_entry_linkresolver_free(r); }
};
using Reader = std::unique_ptr<archive, FreeReader>;
using Writer = std::unique_ptr<archive, FreeWriter>;
using Entry = std::unique_ptr<archive_entry, FreeEntry>;
using Resolver = std::unique_ptr<archive_entry_linkresolver, FreeResolver>;

// libarchive works relative to the current directory, and a umask would change modes.  Both belong to
// the thread alone after unshare(2) with CLONE_FS, so the rest of the program sees nothing.
Result<LayerReport> inside(const std::string& directory, const std::function<Result<LayerReport>()>& work) {
  Result<LayerReport> result = LayerReport{};
  std::thread thread([&] {
    const auto enter = [&]() -> Result<void> {
      if (::unshare(CLONE_FS) != 0) {
        return sys_fail("unshare(CLONE_FS)");
      }
      ::umask(0);
      if (::chdir(directory.c_str()) != 0) {
        return sys_fail(fmt::format("chdir({})", directory));
      }
      return {};
    };
    if (auto entered = enter(); !entered) {
      result = tl::unexpected<Error>(std::move(entered).error());
    } else {
      result = work();
    }
  });
  thread.join();
  return result;
}

auto archive_fail(archive* a, std::string_view what, const char* path) {
  const char* reason = archive_error_string(a);
  const int os_errno = archive_errno(a);
  // libarchive says EILSEQ for a broken format, and -1 where no errno fits.
  const bool format = os_errno == EILSEQ || os_errno == EINVAL || os_errno <= 0;
  std::string text = reason == nullptr ? "unknown reason" : reason;
  // Its sentence is often no more than "Write failed".
  const std::string cause = format ? std::string() : std::error_code(os_errno, std::generic_category()).message();
  if (text.find(cause) == std::string::npos) {
    text += ": " + cause;
  }
  return fail(format ? Kind::corrupt : kind_of_errno(os_errno), "{} {}: {}", what, path == nullptr ? "the layer" : path,
              text);
}

// The attributes are filtered on the way out and on the way in: a stream may come from anywhere.
void drop_local_attributes(archive_entry* entry, bool all_of_overlayfs = false) {
  std::vector<std::pair<std::string, std::string>> kept;
  const char* name = nullptr;
  const void* value = nullptr;
  std::size_t size = 0;
  bool dropped = false;
  archive_entry_xattr_reset(entry);
  while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
    if (is_local_attribute(name) || (all_of_overlayfs && std::string_view(name).starts_with("trusted.overlay."))) {
      dropped = true;
    } else {
      kept.emplace_back(name, std::string(static_cast<const char*>(value), size));
    }
  }
  if (!dropped) {
    return;
  }
  archive_entry_xattr_clear(entry);
  for (const auto& [kept_name, kept_value] : kept) {
    archive_entry_xattr_add_entry(entry, kept_name.c_str(), kept_value.data(), kept_value.size());
  }
}

bool take_socket_mark(archive_entry* entry) {
  const char* name = nullptr;
  const void* value = nullptr;
  std::size_t size = 0;
  archive_entry_xattr_reset(entry);
  while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
    if (std::strcmp(name, kSocketMark) == 0) {
      return true;
    }
  }
  return false;
}

Result<void> copy_file(archive* disk, archive* out, const char* path, bool may_change) {
  static constexpr std::array<char, 65536> kZeros{};
  la_int64_t position = 0;
  for (;;) {
    const void* block = nullptr;
    std::size_t size = 0;
    la_int64_t offset = 0;
    const int got = archive_read_data_block(disk, &block, &size, &offset);
    if (got == ARCHIVE_EOF) {
      return {};
    }
    if (got != ARCHIVE_OK && may_change) {
      return {};  // the writer fills the entry up with zeros
    }
    if (got != ARCHIVE_OK) {
      return archive_fail(disk, "reading", path);
    }
    // The writer drops what lies in a hole of the entry's map, but wants to be given it.
    while (position < offset) {
      const auto gap = std::min<la_int64_t>(offset - position, static_cast<la_int64_t>(kZeros.size()));
      if (archive_write_data(out, kZeros.data(), static_cast<std::size_t>(gap)) < 0) {
        return archive_fail(out, "packing", path);
      }
      position += gap;
    }
    if (archive_write_data(out, block, size) < 0) {
      return archive_fail(out, "packing", path);
    }
    position += static_cast<la_int64_t>(size);
  }
}

Result<void> write_entry(archive* disk, archive* out, archive_entry* entry, const PackChoice& choice) {
  const char* path = archive_entry_pathname(entry);
  if (archive_entry_filetype(entry) == AE_IFSOCK) {
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_size(entry, 0);
    archive_entry_xattr_add_entry(entry, kSocketMark, "1", 1);
  }
  drop_local_attributes(entry, choice.for_mounted);
  if (archive_write_header(out, entry) != ARCHIVE_OK) {
    return archive_fail(out, "packing", path);
  }
  if (archive_entry_size(entry) > 0) {
    // The map of a file with holes goes out with its first data, and libarchive leaves it away where none comes: of
    // a file that is gone or empty by now.  What follows would be read as the map.
    if (archive_write_data(out, "", 0) < 0) {
      return archive_fail(out, "packing", path);
    }
    FERRY_CHECK(copy_file(disk, out, path, choice.may_change));
  }
  return {};
}

struct Packer {
  Reader disk;
  Writer out;
  Resolver links;
};

Result<Packer> open_packer(int out_fd) {
  Packer packer{Reader(archive_read_disk_new()), Writer(archive_write_new()),
                Resolver(archive_entry_linkresolver_new())};
  archive_read_disk_set_symlink_physical(packer.disk.get());
  archive_read_disk_set_behavior(packer.disk.get(), ARCHIVE_READDISK_RESTORE_ATIME);
  archive* out = packer.out.get();
  archive_write_set_format_pax(out);
  // File names are bytes, in no particular encoding.
  archive_write_set_options(out, "hdrcharset=BINARY");
  archive_write_set_bytes_in_last_block(out, 1);
  if (archive_write_open_fd(out, out_fd) != ARCHIVE_OK) {
    return archive_fail(out, "opening", nullptr);
  }
  archive_entry_linkresolver_set_strategy(packer.links.get(), ARCHIVE_FORMAT_TAR_PAX_INTERCHANGE);
  return packer;
}

Result<void> pack_entry(Packer& packer, archive_entry* entry, const PackChoice& choice, LayerReport& report) {
  archive_entry* deferred = nullptr;  // other formats write hard links late; tar never does
  archive_entry_linkify(packer.links.get(), &entry, &deferred);
  FERRY_CHECK(write_entry(packer.disk.get(), packer.out.get(), entry, choice));
  ++report.entries;
  return {};
}

Result<LayerReport> finish(Packer& packer, LayerReport report) {
  if (archive_write_close(packer.out.get()) != ARCHIVE_OK) {
    return archive_fail(packer.out.get(), "finishing", nullptr);
  }
  report.bytes = static_cast<std::uint64_t>(archive_filter_bytes(packer.out.get(), -1));
  return report;
}

Result<LayerReport> pack(int out_fd) {
  FERRY_TRY(Packer packer, open_packer(out_fd));
  archive* disk = packer.disk.get();
  if (archive_read_disk_open(disk, ".") != ARCHIVE_OK) {
    return archive_fail(disk, "opening", nullptr);
  }
  LayerReport report;
  for (;;) {
    const Entry entry(archive_entry_new2(disk));
    const int got = archive_read_next_header2(disk, entry.get());
    if (got == ARCHIVE_EOF) {
      return finish(packer, report);
    }
    if (got != ARCHIVE_OK) {
      return archive_fail(disk, "reading", archive_entry_pathname(entry.get()));
    }
    if (archive_read_disk_can_descend(disk) != 0) {
      archive_read_disk_descend(disk);
    }
    FERRY_CHECK(pack_entry(packer, entry.get(), {}, report));
  }
}

Result<LayerReport> pack_chosen(const std::vector<std::string>& paths, const PackChoice& choice, int out_fd) {
  FERRY_TRY(Packer packer, open_packer(out_fd));
  archive* disk = packer.disk.get();
  LayerReport report;
  for (const std::string& path : paths) {
    if (archive_read_disk_open(disk, path.c_str()) != ARCHIVE_OK) {
      return archive_fail(disk, "opening", path.c_str());
    }
    const Entry entry(archive_entry_new2(disk));
    const int got = archive_read_next_header2(disk, entry.get());
    if (got == ARCHIVE_OK) {
      FERRY_CHECK(pack_entry(packer, entry.get(), choice, report));
    } else if (!choice.may_change) {
      return archive_fail(disk, "reading", path.c_str());
    }
    archive_read_close(disk);
    if (choice.on_entry) {
      choice.on_entry(path, got == ARCHIVE_OK);
    }
  }
  return finish(packer, report);
}

Result<void> make_socket(archive_entry* entry) {
  const char* path = archive_entry_pathname(entry);
  if (::mknod(path, S_IFSOCK | archive_entry_perm(entry), 0) != 0) {
    return sys_fail(fmt::format("mknod({}, socket)", path));
  }
  const auto uid = static_cast<uid_t>(archive_entry_uid(entry));
  const auto gid = static_cast<gid_t>(archive_entry_gid(entry));
  if (::lchown(path, uid, gid) != 0) {
    return sys_fail(fmt::format("lchown({})", path));
  }
  const std::array<timespec, 2> times{timespec{archive_entry_atime(entry), archive_entry_atime_nsec(entry)},
                                      timespec{archive_entry_mtime(entry), archive_entry_mtime_nsec(entry)}};
  if (::utimensat(AT_FDCWD, path, times.data(), AT_SYMLINK_NOFOLLOW) != 0) {
    return sys_fail(fmt::format("utimensat({})", path));
  }
  return {};
}

// A socket is made by us and not by libarchive, so its name is checked by us: each parent has to be a
// real directory below the current one.
Result<void> check_parents(const std::string& path) {
  std::string parent;
  for (const auto& part : std::filesystem::path(path).parent_path()) {
    if (part == "..") {
      return fail(Kind::corrupt, "the layer names {}, which lies outside of it", path);
    }
    parent += (parent.empty() ? "" : "/") + part.string();
    struct stat info {};
    if (!parent.empty() && ::lstat(parent.c_str(), &info) == 0 && !S_ISDIR(info.st_mode)) {
      return fail(Kind::corrupt, "the layer names {} below {}, which is no directory", path, parent);
    }
  }
  return path.starts_with('/') ? Result<void>(fail(Kind::corrupt, "the layer names {}, which lies outside of it", path))
                               : Result<void>();
}

Result<void> extract(archive* in, archive* disk, archive_entry* entry) {
  const char* path = archive_entry_pathname(entry);
  if (path == nullptr) {
    return fail(Kind::corrupt, "the layer has an entry without a name");
  }
  drop_local_attributes(entry);
  if (archive_entry_filetype(entry) == AE_IFREG && take_socket_mark(entry)) {
    FERRY_CHECK(check_parents(path));
    return make_socket(entry);
  }
  if (archive_write_header(disk, entry) != ARCHIVE_OK) {
    return archive_fail(disk, "unpacking", path);
  }
  if (archive_entry_size(entry) > 0) {
    for (;;) {
      const void* block = nullptr;
      std::size_t size = 0;
      la_int64_t offset = 0;
      const int got = archive_read_data_block(in, &block, &size, &offset);
      if (got == ARCHIVE_EOF) {
        break;
      }
      if (got != ARCHIVE_OK) {
        return archive_fail(in, "reading", path);
      }
      if (archive_write_data_block(disk, block, size, offset) < 0) {
        return archive_fail(disk, "unpacking", path);
      }
    }
  }
  if (archive_write_finish_entry(disk) != ARCHIVE_OK) {
    return archive_fail(disk, "unpacking", path);
  }
  return {};
}

struct DirectoryTimes {
  std::string path;
  std::array<timespec, 2> times{};
};

// libarchive gives times last to those directories only that it has made itself.
Result<void> set_times(const std::vector<DirectoryTimes>& directories) {
  for (const DirectoryTimes& directory : directories) {
    FERRY_CHECK(check_parents(directory.path));
    if (::utimensat(AT_FDCWD, directory.path.c_str(), directory.times.data(), AT_SYMLINK_NOFOLLOW) != 0 &&
        errno != ENOENT) {
      return sys_fail(fmt::format("utimensat({})", directory.path));
    }
  }
  return {};
}

Result<LayerReport> unpack(int in_fd) {
  const Reader in(archive_read_new());
  archive_read_support_format_tar(in.get());
  const Writer disk(archive_write_disk_new());
  archive_write_disk_set_options(disk.get(), ARCHIVE_EXTRACT_OWNER | ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME |
                                                 ARCHIVE_EXTRACT_ACL | ARCHIVE_EXTRACT_FFLAGS | ARCHIVE_EXTRACT_XATTR |
                                                 ARCHIVE_EXTRACT_SPARSE | ARCHIVE_EXTRACT_SECURE_SYMLINKS |
                                                 ARCHIVE_EXTRACT_SECURE_NODOTDOT |
                                                 ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS);
  if (archive_read_open_fd(in.get(), in_fd, 512 * 1024) != ARCHIVE_OK) {
    return archive_fail(in.get(), "opening", nullptr);
  }
  LayerReport report;
  std::vector<DirectoryTimes> directories;
  for (;;) {
    archive_entry* entry = nullptr;
    const int got = archive_read_next_header(in.get(), &entry);
    if (got == ARCHIVE_EOF) {
      break;
    }
    if (got != ARCHIVE_OK) {
      return archive_fail(in.get(), "reading", nullptr);
    }
    if (archive_entry_filetype(entry) == AE_IFDIR && archive_entry_pathname(entry) != nullptr &&
        archive_entry_mtime_is_set(entry) != 0) {
      directories.push_back({archive_entry_pathname(entry),
                             {timespec{archive_entry_atime(entry), archive_entry_atime_nsec(entry)},
                              timespec{archive_entry_mtime(entry), archive_entry_mtime_nsec(entry)}}});
    }
    FERRY_CHECK(extract(in.get(), disk.get(), entry));
    ++report.entries;
  }
  if (report.entries == 0) {
    // Even an empty layer has its root directory, so this is a stream that was cut at its start.
    return fail(Kind::corrupt, "the layer's tar stream is empty");
  }
  // Directory times and permissions are applied here.
  if (archive_write_close(disk.get()) != ARCHIVE_OK) {
    return archive_fail(disk.get(), "finishing", nullptr);
  }
  FERRY_CHECK(set_times(directories));
  report.bytes = static_cast<std::uint64_t>(archive_filter_bytes(in.get(), -1));
  return report;
}

}  // namespace

bool is_local_attribute(std::string_view name) {
  return name == "trusted.overlay.origin" || name == "trusted.overlay.impure" || name == "trusted.overlay.nlink" ||
         name == "trusted.overlay.uuid" || name == "trusted.overlay.upper" || name == "trusted.overlay.index";
}

Result<LayerReport> pack_layer(const std::string& directory, int out_fd) {
  return inside(directory, [&] { return pack(out_fd); }).during("packing the files of {}", directory);
}

Result<LayerReport> pack_layer_entries(const std::string& directory, const std::vector<std::string>& paths,
                                       const PackChoice& choice, int out_fd) {
  return inside(directory, [&] { return pack_chosen(paths, choice, out_fd); })
      .during("packing the files of {}", directory);
}

Result<LayerReport> unpack_layer(int in_fd, const std::string& directory) {
  return inside(directory, [&] { return unpack(in_fd); }).during("unpacking files into {}", directory);
}

Result<LayerSwap> LayerSwap::prepare(int in_fd, const std::string& upper_dir) {
  LayerSwap swap;
  FERRY_TRY(const std::string id, random_id());
  swap.upper_ = upper_dir;
  const std::string other = fmt::format("{}.ferry-{}", upper_dir, id);
  if (::mkdir(other.c_str(), 0755) != 0) {
    return sys_fail(fmt::format("mkdir({})", other));
  }
  swap.other_ = other;
  FERRY_TRY(swap.report_, unpack_layer(in_fd, other));
  return swap;
}

LayerSwap::LayerSwap(LayerSwap&& other) noexcept
    : upper_(std::move(other.upper_)),
      other_(std::exchange(other.other_, std::string())),
      swapped_(std::exchange(other.swapped_, false)),
      report_(other.report_) {}

Result<void> LayerSwap::swap() {
  if (::renameat2(AT_FDCWD, other_.c_str(), AT_FDCWD, upper_.c_str(), RENAME_EXCHANGE) != 0) {
    return sys_fail(fmt::format("renameat2({}, {}, RENAME_EXCHANGE)", other_, upper_));
  }
  swapped_ = true;
  return {};
}

void LayerSwap::keep() { swapped_ = false; }

LayerSwap::~LayerSwap() {
  if (other_.empty()) {
    return;
  }
  if (swapped_) {
    if (auto back = swap(); !back) {
      log::warning("the container's own layer was left in {}: {}", other_, back.error().message());
      return;
    }
  }
  std::error_code ignored;
  std::filesystem::remove_all(other_, ignored);
  if (ignored) {
    log::warning("{} could not be removed: {}", other_, ignored.message());
  }
}

}  // namespace ferry::container
