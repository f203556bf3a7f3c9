#include "migrate/storage_in.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

#include "base/unique_fd.h"
#include "migrate/file_patch.h"
#include "migrate/message.pb.h"
#include "migrate/pump.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

// A regular file below `directory`, whatever links lie on the way.  Errors: gone.
Result<UniqueFd> open_file_below(const std::string& directory, const std::string& path, int flags) {
  FERRY_TRY(const UniqueFd root, sys::open(directory, O_PATH | O_DIRECTORY));
  open_how how{};
  how.flags = static_cast<std::uint64_t>(flags) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
  UniqueFd fd(static_cast<int>(::syscall(SYS_openat2, root.get(), path.c_str(), &how, sizeof how)));
  if (!fd) {
    const int why = errno;
    if (why == ENOENT || why == ENOTDIR || why == ELOOP || why == EISDIR || why == ENXIO) {
      return fail(Kind::gone, "{} is no file here", path);
    }
    return sys_fail(why, fmt::format("openat2({})", path));
  }
  FERRY_TRY(const struct stat info, sys::stat_fd(fd.get(), path));
  if (!S_ISREG(info.st_mode)) {
    return fail(Kind::gone, "{} is no file here", path);
  }
  return fd;
}

timespec time_of(std::uint64_t ns) {
  return {.tv_sec = static_cast<time_t>(ns / 1'000'000'000U), .tv_nsec = static_cast<long>(ns % 1'000'000'000U)};
}

// In this order: changing the owner takes capabilities and set-id bits away, and everything touches the times.
Result<void> dress(int fd, const wire::Patch& patch) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    return sys_fail(fmt::format("fstat({})", patch.path()));
  }
  if ((info.st_uid != patch.uid() || info.st_gid != patch.gid()) && ::fchown(fd, patch.uid(), patch.gid()) != 0) {
    return sys_fail(fmt::format("fchown({})", patch.path()));
  }
  if (::fchmod(fd, patch.mode() & 07777U) != 0) {
    return sys_fail(fmt::format("fchmod({})", patch.path()));
  }
  std::string names(65536, '\0');  // XATTR_LIST_MAX
  const ssize_t listed = ::flistxattr(fd, names.data(), names.size());
  names.resize(static_cast<std::size_t>(std::max<ssize_t>(listed, 0)));
  for (std::size_t at = 0; at < names.size();) {
    const std::string name = names.c_str() + at;
    at += name.size() + 1;
    if (!patch.attributes().contains(name) && !name.starts_with("trusted.overlay.") &&
        ::fremovexattr(fd, name.c_str()) != 0 && errno != ENODATA) {
      return sys_fail(fmt::format("fremovexattr({}, {})", patch.path(), name));
    }
  }
  for (const auto& [name, value] : patch.attributes()) {
    if (::fsetxattr(fd, name.c_str(), value.data(), value.size(), 0) != 0) {
      return sys_fail(fmt::format("fsetxattr({}, {})", patch.path(), name));
    }
  }
  const std::array<timespec, 2> times{time_of(patch.atime_ns()), time_of(patch.mtime_ns())};
  if (::futimens(fd, times.data()) != 0) {
    return sys_fail(fmt::format("futimens({})", patch.path()));
  }
  return {};
}

}  // namespace

Result<void> StorageIn::done(std::uint64_t bytes, std::uint64_t entries) {
  wire::Message message;
  message.mutable_done()->set_bytes(bytes);
  message.mutable_done()->set_entries(entries);
  return control_.send(message);
}

Result<void> StorageIn::layer(const wire::Layer& layer, Link& way) {
  container::LayerReport report;
  FERRY_TRY(const auto bytes, receive_read(way, [&](int fd) -> Result<void> {
              FERRY_TRY(report, arrival_.unpack_tree(layer.tree(), fd));
              return {};
            }));
  return done(bytes, report.entries);
}

Result<void> StorageIn::delta(const wire::Delta& delta, Link& way) {
  FERRY_CHECK(arrival_.remove_files(delta.tree(), {delta.removed().begin(), delta.removed().end()}));
  FERRY_TRY(const auto bytes, receive_read(delta.freeze() ? way : control_, [&](int fd) -> Result<void> {
              FERRY_CHECK(arrival_.unpack_changes(delta.tree(), fd));
              return {};
            }));
  return delta.freeze() ? Result<void>() : done(bytes);
}

Result<void> StorageIn::blocks(const wire::Blocks& blocks) {
  FERRY_TRY(const std::string directory, arrival_.mounted_tree(blocks.tree()));
  wire::Message message;
  wire::BlockSums& sums = *message.mutable_block_sums();
  const auto file = open_file_below(directory, blocks.path(), O_RDONLY | O_NOATIME);
  if (!file && file.error().kind != Kind::gone) {
    return tl::unexpected<Error>(file.error());
  }
  sums.set_exists(file.has_value());
  if (file) {
    FERRY_TRY(const auto found, block_sums(file->get(), blocks.path()));
    sums.set_sums(encode_sums(found));
  }
  return control_.send(message);
}

Result<void> StorageIn::patch(const wire::Patch& patch, Link& way) {
  FERRY_TRY(const std::string directory, arrival_.mounted_tree(patch.tree()));
  FERRY_TRY(const UniqueFd file, open_file_below(directory, patch.path(), O_WRONLY));
  Patcher patcher(file.get(), patch.size());
  FERRY_TRY(const auto bytes, (patch.freeze() ? way : control_).receive_stream([&](std::span<const std::byte> piece) {
    return patcher.take(piece);
  }));
  FERRY_CHECK(patcher.finish());
  FERRY_CHECK(dress(file.get(), patch));
  return patch.freeze() ? Result<void>() : done(bytes);
}

}  // namespace ferry::migrate
