#include "state/files/ghost.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

#include "sys/device.h"
#include "sys/file.h"

namespace ferry::state::ghost {
namespace {

using image::Name;
using image::Type;

constexpr std::uint64_t kChunkedFrom = 12288;  // bytes; smaller files are kept whole, as CRIU does

// A path to the file behind a descriptor of ours, whatever names it has.
std::string by_number(int fd) { return fmt::format("/proc/self/fd/{}", fd); }

Result<void> add_chunks(image::Set& set, Name name, int fd, std::uint64_t size, const std::string& subject) {
  off_t at = 0;
  for (;;) {
    const off_t data = ::lseek(fd, at, SEEK_DATA);
    if (data < 0) {
      if (errno == ENXIO) {
        return {};
      }
      return sys_fail(fmt::format("lseek(SEEK_DATA) of {}", subject));
    }
    const off_t hole = ::lseek(fd, data, SEEK_HOLE);
    if (hole < 0) {
      return sys_fail(fmt::format("lseek(SEEK_HOLE) of {}", subject));
    }
    const auto end = std::min<off_t>(hole, static_cast<off_t>(size));
    std::string content(static_cast<std::size_t>(end - data), '\0');
    FERRY_CHECK(sys::pread_exactly(fd, content.data(), content.size(), static_cast<std::uint64_t>(data), subject));
    pb::GhostChunkEntry chunk;
    chunk.set_len(content.size());
    chunk.set_off(static_cast<std::uint64_t>(data));
    set.add(name, std::move(chunk), std::move(content));
    at = hole;
  }
}

Result<void> save_content(DumpContext& context, int ours, const struct stat& stat, Name name, pb::GhostFileEntry entry,
                          const std::string& subject) {
  const std::uint64_t allocated = static_cast<std::uint64_t>(stat.st_blocks) * 512;
  if (allocated > context.options.ghost_limit) {
    return fail(Kind::unsupported, "{}: the file is deleted and holds {} bytes, more than --ghost-limit {}", subject,
                allocated, context.options.ghost_limit);
  }
  if (context.options.skip_memory) {  // only a look
    context.set.add(name, std::move(entry));
    return {};
  }
  FERRY_TRY(const UniqueFd readable, sys::open(by_number(ours), O_RDONLY));
  const auto size = static_cast<std::uint64_t>(stat.st_size);
  if (size >= kChunkedFrom) {
    entry.set_chunks(true);
    entry.set_size(size);
    context.set.add(name, std::move(entry));
    return add_chunks(context.set, name, readable.get(), size, subject);
  }
  std::string content(size, '\0');
  FERRY_CHECK(sys::pread_exactly(readable.get(), content.data(), size, 0, subject));
  context.set.add(name, std::move(entry), std::move(content));
  return {};
}

Result<void> fill_content(const std::vector<image::Entry>& entries, int fd, const std::string& subject) {
  const auto* head = static_cast<const pb::GhostFileEntry*>(entries.front().message.get());
  if (!head->chunks()) {
    return sys::write_all(fd, entries.front().extra.data(), entries.front().extra.size(), subject);
  }
  if (::ftruncate(fd, static_cast<off_t>(head->size())) != 0) {
    return sys_fail(fmt::format("ftruncate({})", subject));
  }
  for (std::size_t i = 1; i < entries.size(); ++i) {
    const auto* chunk = static_cast<const pb::GhostChunkEntry*>(entries[i].message.get());
    if (::lseek(fd, static_cast<off_t>(chunk->off()), SEEK_SET) < 0) {
      return sys_fail(fmt::format("lseek({}, {})", subject, chunk->off()));
    }
    FERRY_CHECK(sys::write_all(fd, entries[i].extra.data(), entries[i].extra.size(), subject));
  }
  return {};
}

}  // namespace

Result<void> save(DumpContext& context, int ours, const struct stat& stat, std::uint32_t number, bool temporary,
                  const std::string& subject) {
  pb::GhostFileEntry entry;
  entry.set_uid(stat.st_uid);
  entry.set_gid(stat.st_gid);
  entry.set_mode(stat.st_mode);
  entry.set_dev(sys::kernel_device(stat.st_dev));
  entry.set_ino(stat.st_ino);
  entry.mutable_atim()->set_tv_sec(static_cast<std::uint64_t>(stat.st_atim.tv_sec));
  entry.mutable_atim()->set_tv_usec(static_cast<std::uint64_t>(stat.st_atim.tv_nsec / 1000));
  entry.mutable_mtim()->set_tv_sec(static_cast<std::uint64_t>(stat.st_mtim.tv_sec));
  entry.mutable_mtim()->set_tv_usec(static_cast<std::uint64_t>(stat.st_mtim.tv_nsec / 1000));
  if (temporary) {
    entry.set_ferry_temporary(true);
  }
  if (S_ISCHR(stat.st_mode) || S_ISBLK(stat.st_mode)) {
    entry.set_rdev(sys::kernel_device(stat.st_rdev));
  }
  if (S_ISLNK(stat.st_mode)) {
    std::array<char, PATH_MAX> target{};
    // readlink(2): an empty path means the link that the O_PATH descriptor refers to.
    const ssize_t size = ::readlinkat(ours, "", target.data(), target.size());
    if (size < 0) {
      return sys_fail(fmt::format("readlinkat({})", subject));
    }
    entry.set_symlnk_target(std::string(target.data(), static_cast<std::size_t>(size)));
  }
  const Name name{Type::ghost_file, number};
  if (S_ISREG(stat.st_mode)) {
    return save_content(context, ours, stat, name, std::move(entry), subject);
  }
  context.set.add(name, std::move(entry));
  return {};
}

Result<void> make(const pb::GhostFileEntry& entry, const std::string& path) {
  const mode_t type = entry.mode() & S_IFMT;
  int done = 0;
  if (type == S_IFDIR) {
    done = ::mkdir(path.c_str(), 0700);
  } else if (type == S_IFLNK) {
    done = ::symlink(entry.symlnk_target().c_str(), path.c_str());
  } else {
    done = ::mknod(path.c_str(), type | 0600, sys::user_device(entry.rdev()));
  }
  if (done != 0) {
    return sys_fail(fmt::format("making the deleted file {} again", path));
  }
  return {};
}

Result<void> fill(const image::Set& set, std::uint32_t number, int file, const std::string& subject) {
  const auto& entries = set.entries({Type::ghost_file, number});
  const auto* entry = static_cast<const pb::GhostFileEntry*>(entries.front().message.get());
  if (S_ISREG(entry->mode())) {
    FERRY_TRY(const UniqueFd writable, sys::open(by_number(file), O_WRONLY));
    FERRY_CHECK(fill_content(entries, writable.get(), subject));
  }
  if (::fchownat(file, "", entry->uid(), entry->gid(), AT_EMPTY_PATH) != 0) {
    return sys_fail(fmt::format("fchownat({}, {}, {})", subject, entry->uid(), entry->gid()));
  }
  if (S_ISLNK(entry->mode())) {  // has neither mode nor, without following it, times that anybody could set by number
    return {};
  }
  // fchmod(2) and futimens(2) do not take O_PATH descriptors.
  if (::chmod(by_number(file).c_str(), entry->mode() & 07777) != 0) {
    return sys_fail(fmt::format("chmod({}, {:o})", subject, entry->mode() & 07777));
  }
  if (entry->has_mtim()) {
    const timespec times[2] = {
        {static_cast<time_t>(entry->atim().tv_sec()), static_cast<long>(entry->atim().tv_usec()) * 1000},
        {static_cast<time_t>(entry->mtim().tv_sec()), static_cast<long>(entry->mtim().tv_usec()) * 1000}};
    if (::utimensat(AT_FDCWD, by_number(file).c_str(), times, 0) != 0) {
      return sys_fail(fmt::format("utimensat({})", subject));
    }
  }
  return {};
}

}  // namespace ferry::state::ghost
