#include "engine/shared_objects.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <map>

namespace ferry::engine {
namespace {

using state::DumpTask;

bool share(const DumpTask& a, const DumpTask& b, int what) {
  return ::syscall(SYS_kcmp, a.pid.value, b.pid.value, what, 0, 0) == 0;
}

Result<void> refuse_shared_memory(const DumpTask& a, const DumpTask& b) {
  // Shared signal handlers need shared memory (clone(2), CLONE_SIGHAND).
  if (share(a, b, KCMP_VM)) {
    return fail(Kind::unsupported, "pid {} and pid {} are processes that share their memory{} (clone(2) or vfork(2))",
                b.pid, a.pid, share(a, b, KCMP_SIGHAND) ? " and signal handlers" : "");
  }
  return {};
}

// What only clone(2) with CLONE_PARENT makes.
Result<void> refuse_sharing_siblings(const DumpTask& a, const DumpTask& b) {
  FERRY_CHECK(refuse_shared_memory(a, b));
  const bool files = share(a, b, KCMP_FILES) && a.ids->files_id() != b.ids->files_id();
  const bool fs = share(a, b, KCMP_FS) && a.ids->fs_id() != b.ids->fs_id();
  if (files || fs) {
    return fail(Kind::unsupported,
                "pid {} and pid {} share their {}, but their parent does not; ferry cannot make that again", b.pid,
                a.pid, files ? "descriptor table" : "working directory and root");
  }
  return {};
}

}  // namespace

Result<void> number_objects(std::vector<std::unique_ptr<DumpTask>>& tasks) {
  // One counter for each kind of object; 1 is the dumper's own, as in CRIU's sets.
  std::uint32_t next = 1;
  std::uint32_t next_files = 1;
  std::uint32_t next_fs = 1;
  std::map<const DumpTask*, const DumpTask*> youngest;  // by parent
  for (auto& task : tasks) {
    if (task->zombie) {
      continue;
    }
    ++next;
    task->ids->set_vm_id(next);
    task->ids->set_sighand_id(next);
    const DumpTask* parent = task->parent;
    if (parent == nullptr) {
      task->ids->set_files_id(++next_files);
      task->ids->set_fs_id(++next_fs);
      continue;
    }
    FERRY_CHECK(refuse_shared_memory(*parent, *task));
    task->ids->set_files_id(share(*parent, *task, KCMP_FILES) ? parent->ids->files_id() : ++next_files);
    task->ids->set_fs_id(share(*parent, *task, KCMP_FS) ? parent->ids->fs_id() : ++next_fs);
    if (const DumpTask*& sibling = youngest[parent]; sibling == nullptr) {
      sibling = task.get();
    } else {
      FERRY_CHECK(refuse_sharing_siblings(*sibling, *task));
      sibling = task.get();
    }
  }
  return {};
}

}  // namespace ferry::engine
