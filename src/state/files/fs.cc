#include "state/files/fs.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include "sys/file.h"

namespace ferry::state::fs {
namespace {

using image::Name;
using image::Type;

Result<std::uint32_t> directory(DumpTask& task, DumpContext& context, const std::string& what) {
  FERRY_TRY(const UniqueFd fd, sys::open_at(task.proc.get(), what, O_PATH | O_DIRECTORY));
  FERRY_TRY(const auto link, sys::read_link_at(task.proc.get(), what));
  return context.files.add_path(context, task, fd.get(), link, O_RDONLY);
}

}  // namespace

Result<void> collect(DumpTask& task, DumpContext& context) {
  pb::FsEntry entry;
  FERRY_TRY(const auto cwd, directory(task, context, "cwd").during("working directory of pid {}", task.pid));
  FERRY_TRY(const auto root, directory(task, context, "root").during("root directory of pid {}", task.pid));
  entry.set_cwd_id(cwd);
  entry.set_root_id(root);
  entry.set_umask(task.status.umask);
  context.set.add(Name{Type::fs, static_cast<std::uint64_t>(task.ns_pid.value)}, std::move(entry));
  return {};
}

Result<void> restore(RestoreTask& task, RestoreContext& context, tracee::Batch& batch) {
  const auto fetch = [&](std::uint32_t id) -> Result<tracee::Value> {
    FERRY_TRY(const int ours, context.files.get(id));
    return batch.must("fetching a directory", SYS_pidfd_getfd, {task.controller_pidfd, ours, 0});
  };
  const pb::FileEntry* root = context.files.entry(task.fs->root_id());
  if (root == nullptr || !root->has_reg()) {
    return fail(Kind::corrupt, "fs-{} names file {} as root, which is no path", task.ns_pid(), task.fs->root_id());
  }
  if (root->reg().name() != "/") {
    FERRY_TRY(const auto fd, fetch(task.fs->root_id()).during("root directory of pid {}", task.ns_pid()));
    batch.must("fchdir(root)", SYS_fchdir, {fd});
    batch.must("chroot", SYS_chroot, {batch.string(".")});
    batch.must("close", SYS_close, {fd});
  }
  FERRY_TRY(const auto cwd, fetch(task.fs->cwd_id()).during("working directory of pid {}", task.ns_pid()));
  batch.must("fchdir(cwd)", SYS_fchdir, {cwd});
  batch.must("close", SYS_close, {cwd});
  if (task.fs->has_umask()) {
    batch.must("umask", SYS_umask, {task.fs->umask()});
  }
  return {};
}

}  // namespace ferry::state::fs
