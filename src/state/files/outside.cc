#include "state/files/outside.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <set>

#include "image/proto/files.pb.h"
#include "image/proto/mount.pb.h"
#include "state/memory/memory.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

using image::Type;

// A terminal may stay outside if the options say that the restore gets another in its place.
bool terminals_may_be_outside(const DumpOptions& options) {
  return std::any_of(options.external.begin(), options.external.end(),
                     [](const std::string& external) { return external.starts_with("tty["); });
}

// Links of procfs that lead to the file of this id.
std::vector<std::string> links_to(std::uint32_t id, const DumpTask& task, const image::Set& set) {
  std::vector<std::string> out;
  for (const auto* fd : set.list<pb::FdinfoEntry>({Type::fdinfo, task.ids->files_id()})) {
    if (fd->id() == id) {
      out.push_back(fmt::format("fd/{}", fd->fd()));
    }
  }
  if (task.mm == nullptr) {
    return out;
  }
  if (task.mm->exe_file_id() == id) {
    out.emplace_back("exe");
  }
  for (const pb::VmaEntry& vma : task.mm->vmas()) {
    if (vma.shmid() == id && (vma.status() & (memory::kFilePrivate | memory::kFileShared)) != 0) {
      out.push_back(fmt::format("map_files/{:x}-{:x}", vma.start(), vma.end()));
    }
  }
  return out;
}

// Whether the tree finds the same file by its path: a program that went into a mount namespace of its own
// still maps its files by the mounts of the one it came from, and either way leads to them.
bool is_found_inside(const pb::FileEntry& file, const DumpContext& context) {
  for (const auto& task : context.tasks) {
    if (task->zombie) {
      continue;
    }
    for (const std::string& link : links_to(file.id(), *task, context.set)) {
      struct stat there {};
      struct stat inside {};
      const auto root = sys::open_at(task->proc.get(), "root", O_PATH | O_DIRECTORY);
      if (!root.has_value() || ::fstatat(task->proc.get(), link.c_str(), &there, 0) != 0) {
        return false;
      }
      const auto found = sys::open_in_root(root->get(), file.reg().name(), O_PATH);
      return found.has_value() && ::fstat(found->get(), &inside) == 0 && inside.st_dev == there.st_dev &&
             inside.st_ino == there.st_ino;
    }
  }
  return false;
}

// Who holds the file of this id, in words.
std::string holder_of(std::uint32_t id, const DumpContext& context) {
  for (const auto& task : context.tasks) {
    if (task->zombie) {
      continue;
    }
    for (const auto* fd : context.set.list<pb::FdinfoEntry>({Type::fdinfo, task->ids->files_id()})) {
      if (fd->id() == id) {
        return fmt::format("pid {} fd {}", task->pid, fd->fd());
      }
    }
  }
  return "a mapping, program or directory of the tree";
}

}  // namespace

Result<void> check_files_are_inside(DumpContext& context) {
  FERRY_TRY(const auto namespaces, NamespaceIds::of(context.set));
  if (!namespaces.is_new(NsKind::mnt)) {
    return {};
  }
  std::set<std::int64_t> mounts;
  for (const image::Name name : context.set.names(Type::mountpoints)) {
    for (const auto* mount : context.set.list<pb::MntEntry>(name)) {
      mounts.insert(mount->mnt_id());
    }
  }
  // The paths of terminals and FIFOs stand in entries of their own: whose they are.
  std::map<std::uint32_t, std::uint32_t> owners;
  std::set<std::uint32_t> terminals;
  for (const auto* file : context.set.list<pb::FileEntry>({Type::files, 0})) {
    if (file->has_tty() && file->tty().has_regf_id()) {
      owners[file->tty().regf_id()] = file->id();
      terminals.insert(file->tty().regf_id());
    }
    if (file->has_fifo()) {
      owners[file->fifo().regf_id()] = file->id();
    }
  }
  for (const auto* file : context.set.list<pb::FileEntry>({Type::files, 0})) {
    if (!file->has_reg() || file->reg().ext() || !file->reg().has_mnt_id() || file->reg().mnt_id() < 0 ||
        mounts.contains(file->reg().mnt_id()) ||
        (terminals.contains(file->id()) && terminals_may_be_outside(context.options)) ||
        is_found_inside(*file, context)) {
      continue;
    }
    const auto owner = owners.find(file->id());
    const std::string holder = holder_of(owner == owners.end() ? file->id() : owner->second, context);
    return fail(Kind::unsupported, "{}: {} is on a mount that the tree does not have (mount id {}){}", holder,
                file->reg().name(), file->reg().mnt_id(),
                terminals.contains(file->id())
                    ? "; --external tty[RDEV:DEV] lets the restore put another terminal in its place"
                    : "");
  }
  return {};
}

}  // namespace ferry::state
