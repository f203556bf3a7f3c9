#include "state/memfd/memfd.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <set>

#include "state/memfd/inode.h"
#include "state/memfd/settled.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

std::string range_of(const sys::Mapping& m) { return fmt::format("map_files/{:x}-{:x}", m.start, m.end); }

void set_no_owner(pb::FownEntry& fown) {
  fown.set_uid(0);
  fown.set_euid(0);
  fown.set_signum(0);
  fown.set_pid_type(0);
  fown.set_pid(0);
}

class MemfdKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "memory file"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_MEMFD; }
  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    return S_ISREG(probe.stat.st_mode) && (probe.info.flags & O_PATH) == 0 && memfd::is_memfd(probe.link);
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    pb::MemfdFileEntry& entry = *out.mutable_memfd();
    // By a description of our own: moving the position of the task's would show.
    FERRY_TRY(UniqueFd own, sys::open(fmt::format("/proc/self/fd/{}", probe.ours), O_RDONLY));
    FERRY_TRY(const auto* inode, memfd::describe(context.set, own.get(), probe.link, probe.subject()));
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    entry.set_pos(probe.info.pos);
    entry.set_inode_id(static_cast<std::uint32_t>(inode->inode_id()));
    files_.emplace(inode->shmid(), std::move(own));
    return collect_fown(probe, context, *entry.mutable_fown());
  }

  // Contents, of the files that are only mapped as well.
  Result<void> finish(DumpContext& context) override {
    for (const auto& task : context.tasks) {
      for (const sys::Mapping& m : task->mappings) {
        if (!m.shared || files_.contains(static_cast<std::uint32_t>(m.inode)) || !is_kept(context.set, m.inode)) {
          continue;
        }
        FERRY_TRY(UniqueFd fd, sys::open_at(task->proc.get(), range_of(m), O_RDONLY));
        files_.emplace(static_cast<std::uint32_t>(m.inode), std::move(fd));
      }
    }
    for (const auto* inode : context.set.list<pb::MemfdInodeEntry>({image::Type::memfd})) {
      const auto file = files_.find(inode->shmid());
      if (file == files_.end()) {
        return fail(Kind::gone, "memory file {} is neither open nor mapped in the tree any more", inode->name());
      }
      FERRY_CHECK(
          memfd::save_content(context, *inode, file->second.get()).during("saving memory file {}", inode->name()));
    }
    files_.clear();
    return {};
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::MemfdFileEntry& entry = file.memfd();
    for (const auto* inode : context.set.list<pb::MemfdInodeEntry>({image::Type::memfd})) {
      if (inode->inode_id() != entry.inode_id()) {
        continue;
      }
      auto known = files_.find(entry.inode_id());
      if (known == files_.end()) {
        FERRY_TRY(UniqueFd made, make(*inode, context));
        known = files_.emplace(entry.inode_id(), std::move(made)).first;
      }
      FERRY_TRY(UniqueFd fd,
                sys::open(fmt::format("/proc/self/fd/{}", known->second.get()), static_cast<int>(entry.flags())));
      if (entry.pos() != 0 && ::lseek(fd.get(), static_cast<off_t>(entry.pos()), SEEK_SET) < 0) {
        return sys_fail(fmt::format("lseek(memory file {}, {})", inode->name(), entry.pos()));
      }
      return fd;
    }
    return fail(Kind::corrupt, "memfd.img has no inode {}", entry.inode_id());
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restore_fown(fd, file.memfd().fown(), context);
  }

  // F_SEAL_FUTURE_WRITE leaves existing mappings writable (fcntl(2)), so it comes after the mappings.
  Result<void> complete(RestoreContext& context) override {
    for (const auto* inode : context.set.list<pb::MemfdInodeEntry>({image::Type::memfd})) {
      if (const auto file = files_.find(static_cast<std::uint32_t>(inode->inode_id())); file != files_.end()) {
        FERRY_CHECK(memfd::seal(*inode, file->second.get()));
      }
    }
    return {};
  }

 private:
  static bool is_kept(const image::Set& set, std::uint64_t inode) {
    for (const auto* entry : set.list<pb::MemfdInodeEntry>({image::Type::memfd})) {
      if (entry->shmid() == static_cast<std::uint32_t>(inode)) {
        return true;
      }
    }
    return false;
  }

  static Result<UniqueFd> make(const pb::MemfdInodeEntry& inode, const RestoreContext& context) {
    const std::string key = memfd::settled_key(inode.shmid());
    for (const InheritFd& given : context.options.inherit_fds) {
      if (given.key == key) {
        FERRY_TRY(UniqueFd settled, sys::duplicate(given.fd));
        FERRY_CHECK(memfd::settle(inode, settled.get()));
        return settled;
      }
    }
    FERRY_TRY(auto pages, image::PageStore::open(context.set, context.options.images_dir));
    return memfd::create(inode, pages);
  }

  std::map<std::uint32_t, UniqueFd> files_;  // checkpoint: by shmid; restore: by inode id
};

}  // namespace

namespace memfd {

Result<std::uint32_t> add_mapping(DumpContext& context, DumpTask& task, const sys::Mapping& mapping) {
  const std::string subject =
      fmt::format("pid {} mapping {:x}-{:x} ({})", task.pid, mapping.start, mapping.end, mapping.name);
  FERRY_TRY(const std::string link, sys::read_link_at(task.proc.get(), range_of(mapping)));
  FERRY_TRY(const UniqueFd fd, sys::open_at(task.proc.get(), range_of(mapping), O_RDONLY).during("{}", subject));
  FERRY_TRY(const auto* inode, describe(context.set, fd.get(), link, subject));
  // "mw": the mapping may become writable.  Otherwise its file was open for reading only, or is sealed.
  const std::uint32_t mode = mapping.shared && !mapping.has_flag("mw") ? O_RDONLY : O_RDWR;
  // Entries of mappings come before those of descriptors, and only they have no position.
  for (const auto* file : context.set.list<pb::FileEntry>({image::Type::files})) {
    if (file->has_memfd() && file->memfd().inode_id() == inode->inode_id() && file->memfd().flags() == mode) {
      return file->id();
    }
  }
  pb::FileEntry file;
  file.set_type(pb::FD_MEMFD);
  file.set_id(context.files.next_id());
  pb::MemfdFileEntry& entry = *file.mutable_memfd();
  entry.set_id(file.id());
  entry.set_flags(mode);
  entry.set_pos(0);
  entry.set_inode_id(static_cast<std::uint32_t>(inode->inode_id()));
  set_no_owner(*entry.mutable_fown());
  const std::uint32_t id = file.id();
  context.set.add({image::Type::files}, std::move(file));
  return id;
}

}  // namespace memfd

std::unique_ptr<FileKind> make_memfd_kind() { return std::make_unique<MemfdKind>(); }

}  // namespace ferry::state
