// verify(): the tree and what each task in it has.
#include "image/findings.h"
#include "image/proto/cgroup.pb.h"
#include "image/proto/core.pb.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/pstree.pb.h"
#include "image/proto/security.pb.h"

namespace ferry::image {
namespace {

constexpr std::uint32_t kAlive = 1;
constexpr std::uint32_t kDead = 2;
constexpr std::uint32_t kStopped = 3;
constexpr int kSignalActions = 62;  // 1 to 64 without SIGKILL and SIGSTOP

class Tasks {
 public:
  Tasks(const Set& set, const FileIndex& files, Findings& out) : set_(set), files_(files), out_(out) {
    const auto inventory = set.list<pb::InventoryEntry>({Type::inventory, 0});
    if (!inventory.empty() && inventory.front()->has_root_cg_set()) {
      cgroup_sets_.insert(inventory.front()->root_cg_set());
    }
    for (const auto* cgroup : set.list<pb::CgroupEntry>({Type::cgroup, 0})) {
      for (const auto& one : cgroup->sets()) {
        cgroup_sets_.insert(one.id());
      }
    }
    for (const auto* seccomp : set.list<pb::SeccompEntry>({Type::seccomp, 0})) {
      filters_ = static_cast<std::uint32_t>(seccomp->seccomp_filters_size());
      for (std::uint32_t i = 0; i < filters_; ++i) {
        const auto& filter = seccomp->seccomp_filters(static_cast<int>(i));
        // A chain is written before what was installed on top of it, so it cannot be a ring.
        out.require(!filter.has_prev() || filter.prev() < i, "seccomp.img: filter {} stands on filter {}", i,
                    filter.prev());
        out.require(filter.filter().size() % 8 == 0 && !filter.filter().empty(),
                    "seccomp.img: filter {} has {} bytes, which are no instructions", i, filter.filter().size());
      }
    }
  }

  void check() {
    const auto tree = set_.list<pb::PstreeEntry>({Type::pstree, 0});
    out_.require(!tree.empty(), "pstree.img is missing or empty");
    for (const auto* task : tree) {
      const auto pid = task->pid();
      out_.require(pid != 0 && pids_.insert(pid).second, "pstree.img: pid {} is zero or there twice", pid);
      out_.require((task->ppid() == 0) == (pids_.size() == 1),
                   "pstree.img: pid {} has parent {}; only the first has none", pid, task->ppid());
      out_.require(task->ppid() == 0 || pids_.contains(task->ppid()),
                   "pstree.img: the parent {} of pid {} is not before it", task->ppid(), pid);
      check_task(*task);
    }
    for (const Name name : set_.names(Type::core)) {
      out_.require(threads_.contains(name.id), "{} belongs to no thread of pstree.img", file_name(name));
    }
  }

 private:
  const pb::CoreEntry* core_of(std::uint32_t tid) {
    const Name name{Type::core, tid};
    const auto list = set_.list<pb::CoreEntry>(name);
    if (list.empty()) {
      out_.add("{} is missing", file_name(name));
      return nullptr;
    }
    out_.require(list.front()->mtype() == pb::CoreEntry::MARCH_X86_64, "{} is of another processor", file_name(name));
    return list.front();
  }

  void check_task(const pb::PstreeEntry& task) {
    const auto pid = task.pid();
    out_.require(threads_.insert(pid).second, "pstree.img: thread {} is there twice", pid);
    const auto* core = core_of(pid);
    if (core == nullptr) {
      return;
    }
    const auto file = file_name({Type::core, pid});
    if (!core->has_tc()) {
      out_.add("{} has no tc", file);
      return;
    }
    const auto state = core->tc().task_state();
    if (state == kDead) {
      return;  // what its threads field says may be junk
    }
    out_.require(state == kAlive || state == kStopped, "{}: state {} is unknown", file, state);
    out_.require(core->tc().sigactions_size() == kSignalActions, "{} has {} signal actions, not {}", file,
                 core->tc().sigactions_size(), kSignalActions);
    out_.require(core->tc().has_timers(), "{} has no timers", file);
    out_.require(core->tc().has_rlimits(), "{} has no rlimits", file);
    check_thread(pid, *core);
    out_.require(task.threads_size() > 0 && task.threads(0) == pid, "pstree.img: the first thread of pid {} is another",
                 pid);
    for (int i = 1; i < task.threads_size(); ++i) {
      const auto tid = task.threads(i);
      out_.require(threads_.insert(tid).second, "pstree.img: thread {} is there twice", tid);
      if (const auto* thread = core_of(tid); thread != nullptr) {
        check_thread(tid, *thread);
      }
    }
    for (const Type type : {Type::ids, Type::mm, Type::fs, Type::pagemap}) {
      out_.require(set_.has({type, pid}), "{} is missing", file_name({type, pid}));
    }
    for (const auto* fs : set_.list<pb::FsEntry>({Type::fs, pid})) {
      out_.require(files_.has(pb::FD_REG, fs->cwd_id()), "fs-{}.img: cwd_id {} is no REG file", pid, fs->cwd_id());
      out_.require(files_.has(pb::FD_REG, fs->root_id()), "fs-{}.img: root_id {} is no REG file", pid, fs->root_id());
    }
  }

  void check_thread(std::uint32_t tid, const pb::CoreEntry& core) {
    const auto file = file_name({Type::core, tid});
    out_.require(core.has_thread_info(), "{} has no registers", file);
    if (!core.has_thread_core()) {
      out_.add("{} has no thread_core", file);
      return;
    }
    const auto& thread = core.thread_core();
    out_.require(thread.has_creds(), "{} has no credentials", file);
    out_.require(!thread.has_cg_set() || cgroup_sets_.contains(thread.cg_set()),
                 "{}: cgroup set {} is neither in cgroup.img nor the dumper's", file, thread.cg_set());
    out_.require(!thread.has_seccomp_filter() || thread.seccomp_filter() < filters_,
                 "{}: seccomp filter {} is not in seccomp.img", file, thread.seccomp_filter());
  }

  const Set& set_;
  const FileIndex& files_;
  Findings& out_;
  std::set<std::uint32_t> cgroup_sets_;
  std::uint32_t filters_ = 0;
  std::set<std::uint32_t> pids_;
  std::set<std::uint64_t> threads_;
};

}  // namespace

void verify_tasks(const Set& set, const FileIndex& files, Findings& out) { Tasks(set, files, out).check(); }

}  // namespace ferry::image
