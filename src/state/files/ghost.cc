#include "state/files/ghost.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>

#include "image/proto/remap.pb.h"
#include "sys/file.h"

namespace ferry::state::ghost {
namespace {

using image::Name;
using image::Type;

constexpr std::uint64_t kChunkedFrom = 12288;  // bytes; smaller files are kept whole, as CRIU does

std::uint32_t kernel_device(dev_t device) { return static_cast<std::uint32_t>(major(device) << 20 | minor(device)); }

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

}  // namespace

Result<void> collect(DumpContext& context, int ours, const struct stat& stat, std::uint32_t id,
                     const std::string& subject) {
  if (!S_ISREG(stat.st_mode) && !S_ISDIR(stat.st_mode)) {
    return fail(Kind::unsupported, "{}: a deleted file of this type (mode {:o}) cannot be carried over", subject,
                stat.st_mode);
  }
  const std::uint64_t allocated = static_cast<std::uint64_t>(stat.st_blocks) * 512;
  if (allocated > context.options.ghost_limit) {
    return fail(Kind::unsupported, "{}: the file is deleted and holds {} bytes, more than --ghost-limit {}", subject,
                allocated, context.options.ghost_limit);
  }
  // One inode, one ghost: two descriptions of it share the image.
  std::uint32_t ghost = 0;
  for (const Name& known : context.set.names(Type::ghost_file)) {
    const auto* entry = static_cast<const pb::GhostFileEntry*>(context.set.entries(known).front().message.get());
    if (entry->ino() == stat.st_ino && entry->dev() == kernel_device(stat.st_dev)) {
      ghost = static_cast<std::uint32_t>(known.id);
    }
  }
  if (ghost == 0) {
    ghost = static_cast<std::uint32_t>(context.set.names(Type::ghost_file).size() + 1);
    const Name name{Type::ghost_file, ghost};
    pb::GhostFileEntry entry;
    entry.set_uid(stat.st_uid);
    entry.set_gid(stat.st_gid);
    entry.set_mode(stat.st_mode);
    entry.set_dev(kernel_device(stat.st_dev));
    entry.set_ino(stat.st_ino);
    entry.mutable_atim()->set_tv_sec(static_cast<std::uint64_t>(stat.st_atim.tv_sec));
    entry.mutable_atim()->set_tv_usec(static_cast<std::uint64_t>(stat.st_atim.tv_nsec / 1000));
    entry.mutable_mtim()->set_tv_sec(static_cast<std::uint64_t>(stat.st_mtim.tv_sec));
    entry.mutable_mtim()->set_tv_usec(static_cast<std::uint64_t>(stat.st_mtim.tv_nsec / 1000));
    if (S_ISDIR(stat.st_mode)) {
      context.set.add(name, std::move(entry));
    } else {
      FERRY_TRY(const UniqueFd readable, sys::open(fmt::format("/proc/self/fd/{}", ours), O_RDONLY));
      const auto size = static_cast<std::uint64_t>(stat.st_size);
      if (size >= kChunkedFrom) {
        entry.set_chunks(true);
        entry.set_size(size);
        context.set.add(name, std::move(entry));
        FERRY_CHECK(add_chunks(context.set, name, readable.get(), size, subject));
      } else {
        std::string content(size, '\0');
        FERRY_CHECK(sys::pread_exactly(readable.get(), content.data(), size, 0, subject));
        context.set.add(name, std::move(entry), std::move(content));
      }
    }
  }
  pb::RemapFilePathEntry remap;
  remap.set_orig_id(id);
  remap.set_remap_id(ghost);
  remap.set_remap_type(pb::REMAP_GHOST);
  context.set.add(Name{Type::remap_fpath, 0}, std::move(remap));
  return {};
}

Ghosts::~Ghosts() {
  if (inside_ != nullptr) {
    (void)inside_->run([&]() -> Result<void> {
      for (const auto& [id, path] : made_) {
        if (::unlink(path.c_str()) != 0 && errno == EISDIR) {
          ::rmdir(path.c_str());
        }
      }
      return {};
    });
  }
}

Result<void> Ghosts::read_remaps(const image::Set& set) {
  for (const auto* remap : set.list<pb::RemapFilePathEntry>(Name{Type::remap_fpath, 0})) {
    if (!remap->has_remap_type() || remap->remap_type() == pb::REMAP_GHOST) {
      // Very old sets have no type and mark ghosts with the top bit.
      ghost_of_file_[remap->orig_id()] = remap->remap_id() & 0x7fffffff;
    } else if (remap->remap_type() != pb::REMAP_PROCFS) {
      return fail(Kind::unsupported, "file {} was kept by a helper link (link_remap), which ferry cannot follow",
                  remap->orig_id());
    }
  }
  read_ = true;
  return {};
}

Result<std::string> Ghosts::path_for(RestoreContext& context, std::uint32_t id, const std::string& path) {
  if (!read_) {
    FERRY_CHECK(read_remaps(context.set));
  }
  const auto ghost = ghost_of_file_.find(id);
  if (ghost == ghost_of_file_.end()) {
    return path;
  }
  if (!made_.contains(ghost->second)) {
    FERRY_CHECK(make(context, ghost->second, path).during("making the deleted file {} again", path));
  }
  return made_.at(ghost->second);
}

Result<void> Ghosts::make(RestoreContext& context, std::uint32_t ghost, const std::string& wanted) {
  const Name name{Type::ghost_file, ghost};
  FERRY_TRY(const auto* entry, context.set.one<pb::GhostFileEntry>(name));
  inside_ = &context.inside;
  return context.inside.run([&]() -> Result<void> {
    // The name it had, so that /proc shows the same again; another one if that is taken by now.
    std::string path = wanted;
    UniqueFd fd;
    for (int attempt = 0;; ++attempt) {
      if (S_ISDIR(entry->mode())) {
        if (::mkdir(path.c_str(), 0700) == 0) {
          FERRY_TRY(fd, sys::open(path, O_RDONLY | O_DIRECTORY));
          break;
        }
      } else {
        auto made = sys::open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (made.has_value()) {
          fd = std::move(*made);
          break;
        }
        errno = made.error().os_errno;
      }
      if (errno != EEXIST || attempt == 1) {
        return sys_fail(fmt::format("creating {}", path));
      }
      path = fmt::format("{}.cr.{:x}.ghost", wanted, ghost);
    }
    made_[ghost] = path;
    if (S_ISREG(entry->mode())) {
      const auto& entries = context.set.entries(name);
      if (entry->chunks()) {
        if (::ftruncate(fd.get(), static_cast<off_t>(entry->size())) != 0) {
          return sys_fail(fmt::format("ftruncate({})", path));
        }
        for (std::size_t i = 1; i < entries.size(); ++i) {
          const auto* chunk = static_cast<const pb::GhostChunkEntry*>(entries[i].message.get());
          if (::lseek(fd.get(), static_cast<off_t>(chunk->off()), SEEK_SET) < 0) {
            return sys_fail(fmt::format("lseek({})", path));
          }
          FERRY_CHECK(sys::write_all(fd.get(), entries[i].extra.data(), entries[i].extra.size(), path));
        }
      } else {
        FERRY_CHECK(sys::write_all(fd.get(), entries.front().extra.data(), entries.front().extra.size(), path));
      }
    }
    if (::fchown(fd.get(), entry->uid(), entry->gid()) != 0 || ::fchmod(fd.get(), entry->mode() & 07777) != 0) {
      return sys_fail(fmt::format("setting owner and mode of {}", path));
    }
    if (entry->has_mtim()) {
      const timespec times[2] = {
          {static_cast<time_t>(entry->atim().tv_sec()), static_cast<long>(entry->atim().tv_usec()) * 1000},
          {static_cast<time_t>(entry->mtim().tv_sec()), static_cast<long>(entry->mtim().tv_usec()) * 1000}};
      if (::futimens(fd.get(), times) != 0) {
        return sys_fail(fmt::format("futimens({})", path));
      }
    }
    return {};
  });
}

Result<void> Ghosts::remove(RestoreContext& context) {
  return context.inside.run([&]() -> Result<void> {
    for (const auto& [id, path] : made_) {
      if (::unlink(path.c_str()) != 0 && !(errno == EISDIR && ::rmdir(path.c_str()) == 0)) {
        return sys_fail(fmt::format("unlink({})", path));
      }
    }
    made_.clear();
    return {};
  });
}

}  // namespace ferry::state::ghost
