#include "state/files/outside.h"

#include <algorithm>
#include <map>
#include <set>

#include "image/proto/files.pb.h"
#include "image/proto/mount.pb.h"
#include "state/nsids/nsids.h"

namespace ferry::state {
namespace {

using image::Type;

// A terminal may stay outside if the options say that the restore gets another in its place.
bool terminals_may_be_outside(const DumpOptions& options) {
  return std::any_of(options.external.begin(), options.external.end(),
                     [](const std::string& external) { return external.starts_with("tty["); });
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
        (terminals.contains(file->id()) && terminals_may_be_outside(context.options))) {
      continue;
    }
    const auto owner = owners.find(file->id());
    const std::string holder = holder_of(owner == owners.end() ? file->id() : owner->second, context);
    return fail(Kind::unsupported, "{}: {} is on a mount that the tree does not have (mount id {}){}", holder,
                file->reg().name(), file->reg().mnt_id(),
                terminals.contains(file->id()) ? "; --external tty[RDEV:DEV] lets the restore put another terminal in its place" : "");
  }
  return {};
}

}  // namespace ferry::state
