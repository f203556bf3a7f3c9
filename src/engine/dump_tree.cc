#include "engine/dump_tree.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "sys/file.h"

namespace ferry::engine {
namespace {

using image::Name;
using image::Type;
using state::DumpTask;
using state::DumpThread;

NsPid innermost(const std::vector<pid_t>& levels) { return NsPid(levels.empty() ? 0 : levels.back()); }

Result<void> read_procfs(DumpTask& task) {
  FERRY_TRY(task.proc, sys::open_proc(task.pid));
  FERRY_TRY(const auto stat, sys::read_file_at(task.proc.get(), "stat"));
  FERRY_TRY(task.stat, sys::parse_stat(stat));
  FERRY_TRY(const auto status, sys::read_file_at(task.proc.get(), "status"));
  FERRY_TRY(task.status, sys::parse_status(status));
  task.ns_pid = innermost(task.status.ns_tgid);
  task.ns_pgid = innermost(task.status.ns_pgid);
  task.ns_sid = innermost(task.status.ns_sid);
  if (task.zombie) {
    return {};
  }
  const long pidfd = ::syscall(SYS_pidfd_open, task.pid.value, 0);
  if (pidfd < 0) {
    return sys_fail(fmt::format("pidfd_open({})", task.pid));
  }
  task.pidfd = UniqueFd(static_cast<int>(pidfd));
  FERRY_TRY(const auto smaps, sys::read_file_at(task.proc.get(), "smaps"));
  FERRY_TRY(task.mappings, sys::parse_maps(smaps));
  return {};
}

Result<void> read_threads(DumpTask& task) {
  for (std::size_t i = 0; i < task.process.threads().size(); ++i) {
    auto& traced = task.process.threads()[i];
    DumpThread thread;
    thread.tid = traced.tid();
    thread.index = i;
    thread.ns_tid = NsPid(thread.tid.value);
    if (i == 0) {
      thread.ns_tid = task.ns_pid;
    } else if (task.status.ns_tgid.size() > 1) {
      FERRY_TRY(const auto text, sys::read_file_at(task.proc.get(), fmt::format("task/{}/status", thread.tid)));
      FERRY_TRY(thread.status, sys::parse_status(text));
      thread.ns_tid = innermost(thread.status->ns_pid);
    }
    FERRY_TRY(thread.registers, traced.registers());
    FERRY_TRY(thread.signal_mask, traced.signal_mask());
    if (thread.registers.cs != 0x33) {
      return fail(Kind::unsupported, "task {} runs 32-bit code, which cannot be carried over", thread.tid);
    }
    task.threads.push_back(thread);
  }
  return {};
}

bool shares(const DumpTask& a, const DumpTask& b, int what) {
  return ::syscall(SYS_kcmp, a.pid.value, b.pid.value, what, 0, 0) == 0;
}

// One counter for each kind of object; 1 is the dumper's own, as in CRIU's sets.
Result<void> number_objects(std::vector<std::unique_ptr<DumpTask>>& tasks) {
  std::uint32_t next = 1;
  std::uint32_t next_files = 1;
  for (auto& task : tasks) {
    if (task->zombie) {
      continue;
    }
    ++next;
    task->ids->set_vm_id(next);
    task->ids->set_fs_id(next);
    task->ids->set_sighand_id(next);
    const DumpTask* parent = task->parent;
    if (parent != nullptr && !parent->zombie) {
      struct Shared {
        int what;
        const char* name;
      };
      for (const Shared s : {Shared{KCMP_VM, "memory"}, Shared{KCMP_FS, "working directory and root"},
                             Shared{KCMP_SIGHAND, "signal handlers"}}) {
        if (shares(*parent, *task, s.what)) {
          return fail(Kind::unsupported, "pid {} and its parent {} are processes that share their {} (clone(2) or vfork(2))",
                      task->pid, parent->pid, s.name);
        }
      }
      if (shares(*parent, *task, KCMP_FILES)) {
        task->ids->set_files_id(parent->ids->files_id());
        continue;
      }
    }
    task->ids->set_files_id(++next_files);
  }
  return {};
}

void add_core(DumpTask& task, image::Set& set) {
  if (task.zombie) {
    pb::CoreEntry core;
    core.set_mtype(pb::CoreEntry::MARCH_X86_64);
    pb::TaskCoreEntry& tc = *core.mutable_tc();
    tc.set_task_state(2);
    tc.set_exit_code(static_cast<std::uint32_t>(task.stat.exit_code));
    tc.set_personality(0);
    tc.set_flags(task.stat.flags);
    tc.set_blk_sigset(0);
    tc.set_comm(task.stat.comm);
    task.core = &set.add(Name{Type::core, static_cast<std::uint64_t>(task.ns_pid.value)}, std::move(core));
    return;
  }
  for (DumpThread& thread : task.threads) {
    pb::CoreEntry core;
    core.set_mtype(pb::CoreEntry::MARCH_X86_64);
    core.mutable_thread_core();
    if (thread.index == 0) {
      pb::TaskCoreEntry& tc = *core.mutable_tc();
      tc.set_task_state(task.job_stopped ? 3 : 1);
      if (task.job_stopped) {
        tc.set_stop_signo(static_cast<std::uint32_t>(task.stop_signal));
      }
      tc.set_exit_code(0);
      tc.set_personality(0);
      tc.set_flags(task.stat.flags);
      tc.set_blk_sigset(thread.signal_mask);
      tc.set_comm(task.stat.comm);
    }
    thread.core = &set.add(Name{Type::core, static_cast<std::uint64_t>(thread.ns_tid.value)}, std::move(core));
  }
  task.core = task.threads.front().core;
}

}  // namespace

Result<void> read_thread_statuses(DumpTask& task) {
  for (DumpThread& thread : task.threads) {
    if (thread.index == 0) {
      thread.status = task.status;
    } else if (!thread.status.has_value()) {
      FERRY_TRY(const auto text, sys::read_file_at(task.proc.get(), fmt::format("task/{}/status", thread.tid)));
      FERRY_TRY(thread.status, sys::parse_status(text));
    }
  }
  return {};
}

Result<std::vector<std::unique_ptr<DumpTask>>> build_dump_tree(std::vector<tracee::StoppedTask> stopped,
                                                               const state::DumpOptions& options, image::Set& set) {
  std::vector<std::unique_ptr<DumpTask>> tasks;
  for (tracee::StoppedTask& from : stopped) {
    auto task = std::make_unique<DumpTask>();
    task->pid = from.pid;
    task->zombie = from.zombie;
    task->job_stopped = from.job_stopped;
    task->stop_signal = from.stop_signal;
    for (const auto& other : tasks) {
      if (other->pid == from.parent) {
        task->parent = other.get();
      }
    }
    FERRY_CHECK(read_procfs(*task).during("reading /proc of pid {}", from.pid));
    if (!from.zombie) {
      FERRY_TRY(task->process, tracee::Process::of(from.pid, std::move(from.threads)));
      FERRY_CHECK(read_threads(*task));
    }
    tasks.push_back(std::move(task));
  }
  std::set<NsPid> sessions;
  for (auto& task : tasks) {
    sessions.insert(task->ns_pid);
    pb::PstreeEntry entry;
    entry.set_pid(static_cast<std::uint32_t>(task->ns_pid.value));
    entry.set_ppid(task->parent == nullptr ? 0 : static_cast<std::uint32_t>(task->parent->ns_pid.value));
    entry.set_pgid(static_cast<std::uint32_t>(task->ns_pgid.value));
    entry.set_sid(static_cast<std::uint32_t>(task->ns_sid.value));
    for (const DumpThread& thread : task->threads) {
      entry.add_threads(static_cast<std::uint32_t>(thread.ns_tid.value));
    }
    if (task->zombie) {
      entry.add_threads(static_cast<std::uint32_t>(task->ns_pid.value));
    }
    task->entry = &set.add(Name{Type::pstree, 0}, std::move(entry));
    add_core(*task, set);
    if (!task->zombie) {
      pb::TaskKobjIdsEntry ids;
      task->ids = &set.add(Name{Type::ids, static_cast<std::uint64_t>(task->ns_pid.value)}, std::move(ids));
      task->mm = &set.add(Name{Type::mm, static_cast<std::uint64_t>(task->ns_pid.value)}, pb::MmEntry{});
    }
  }
  const DumpTask& root = *tasks.front();
  if (root.ns_sid != root.ns_pid && !options.shell_job) {
    return fail(Kind::unsupported,
                "pid {} belongs to the session of a shell (session {}) outside of the tree; start it with setsid(1), "
                "or use --shell-job",
                root.pid, root.stat.session);
  }
  FERRY_CHECK(number_objects(tasks));
  return tasks;
}

}  // namespace ferry::engine
