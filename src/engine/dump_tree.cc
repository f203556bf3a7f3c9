#include "engine/dump_tree.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

#include "base/log.h"
#include "engine/shared_objects.h"
#include "sys/file.h"

namespace ferry::engine {
namespace {

using image::Name;
using image::Type;
using state::DumpTask;
using state::DumpThread;

NsPid innermost(const std::vector<pid_t>& levels) { return NsPid(levels.empty() ? 0 : levels.back()); }

// `leader`: the number of the process, also if its main thread has ended.
Result<void> read_procfs(DumpTask& task, HostPid leader, sys::MappingLook& mappings) {
  FERRY_TRY(task.proc, sys::open_proc(task.pid));
  FERRY_TRY(const auto stat, sys::read_file_at(task.proc.get(), "stat"));
  FERRY_TRY(task.stat, sys::parse_stat(stat));
  if (task.leader_ended) {  // whose memory is gone, but not how it was born and ended
    FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/stat", leader)));
    FERRY_TRY(const auto ended, sys::parse_stat(text));
    task.stat.exit_signal = ended.exit_signal;
    task.stat.exit_code = ended.exit_code;
    task.stat.comm = ended.comm;
  }
  FERRY_TRY(const auto status, sys::read_file_at(task.proc.get(), "status"));
  FERRY_TRY(task.status, sys::parse_status(status));
  task.ns_pid = innermost(task.status.ns_tgid);
  task.ns_pgid = innermost(task.status.ns_pgid);
  task.ns_sid = innermost(task.status.ns_sid);
  if (task.zombie) {
    return {};
  }
  // The dead main thread has no descriptors that could be fetched; PIDFD_THREAD is O_EXCL (since Linux 6.9).
  const long pidfd = ::syscall(SYS_pidfd_open, task.pid.value, task.leader_ended ? O_EXCL : 0);
  if (pidfd < 0) {
    return sys_fail(fmt::format("pidfd_open({})", task.pid));
  }
  task.pidfd = UniqueFd(static_cast<int>(pidfd));
  FERRY_TRY(task.mappings, mappings.mappings_of(leader, task.proc.get()));
  return {};
}

// By number; empty if there is no look, or if it does not show all of the threads under the numbers that they have
// for us (as in a pid namespace of ours).
std::unordered_map<pid_t, sys::TaskWords> look_at(const DumpTask& task, HostPid leader, const sys::TaskLook& look,
                                                  const std::vector<tracee::Thread>& threads) {
  std::unordered_map<pid_t, sys::TaskWords> out;
  if (!look.is_open() || threads.size() < sys::TaskLook::kWorthIt) {
    return out;
  }
  const auto all = look.threads_of(leader);
  for (const sys::TaskWords& words : all.has_value() ? *all : std::vector<sys::TaskWords>()) {
    out.emplace(static_cast<pid_t>(words.tid), words);
  }
  const bool complete =
      std::all_of(threads.begin(), threads.end(), [&](const tracee::Thread& t) { return out.contains(t.tid().value); });
  if (!complete) {
    log::debug("the look at the threads of {} shows {} of {}", task.subject(), out.size(), threads.size());
    out.clear();
  }
  return out;
}

Result<void> read_threads(DumpTask& task, HostPid leader, const sys::TaskLook& look) {
  const auto words = look_at(task, leader, look, task.process.threads());
  std::map<sys::TaskWords::Nature, std::size_t> natures;
  task.threads.reserve(task.process.threads().size());
  for (std::size_t i = 0; i < task.process.threads().size(); ++i) {
    auto& traced = task.process.threads()[i];
    DumpThread thread;
    thread.like = i;
    if (const auto known = words.find(traced.tid().value); known != words.end()) {
      thread.words = known->second;
      thread.ns_tid = NsPid(static_cast<pid_t>(thread.words->ns_tid));
      thread.like = natures.emplace(thread.words->nature, i).first->second;
    }
    thread.tid = traced.tid();
    thread.index = i;
    if (i == 0) {
      thread.ns_tid = innermost(task.status.ns_pid);
    } else if (task.status.ns_tgid.size() < 2) {
      thread.ns_tid = NsPid(thread.tid.value);
    } else if (!thread.words.has_value()) {
      FERRY_TRY(const auto text, sys::read_file_at(task.proc.get(), fmt::format("task/{}/status", thread.tid)));
      FERRY_TRY(thread.status, sys::parse_status(text));
      thread.ns_tid = innermost(thread.status->ns_pid);
    }
    FERRY_TRY(thread.registers, traced.registers());
    FERRY_TRY(thread.signal_mask, traced.signal_mask());
    if (thread.registers.cs != 0x33) {
      return fail(Kind::unsupported, "task {} runs 32-bit code, which cannot be carried over", thread.tid);
    }
    task.threads.push_back(std::move(thread));
  }
  return {};
}

// Whether a session or group (our number) lives on outside of the tree, so that nobody of us can found it.
bool is_from_outside(pid_t leader, const std::set<pid_t>& tree) {
  return leader > 0 && !tree.contains(leader) && ::getsid(leader) >= 0;
}

void keep_exit_signal(const DumpTask& task, pb::TaskCoreEntry& tc) {
  if (task.parent != nullptr && task.stat.exit_signal != SIGCHLD) {
    tc.set_ferry_exit_signal(task.stat.exit_signal);
  }
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
    keep_exit_signal(task, tc);
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
      keep_exit_signal(task, tc);
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
    } else if (!task.asks(thread)) {
      thread.status = task.model_of(thread).status;
      thread.status->ns_pid = {thread.ns_tid.value};
      thread.status->sig_pending = thread.words->pending;
    } else if (!thread.status.has_value()) {
      FERRY_TRY(const auto text, sys::read_file_at(task.proc.get(), fmt::format("task/{}/status", thread.tid)));
      FERRY_TRY(thread.status, sys::parse_status(text));
    }
  }
  return {};
}

Result<std::vector<std::unique_ptr<DumpTask>>> build_dump_tree(std::vector<tracee::StoppedTask> stopped,
                                                               const state::DumpOptions& options,
                                                               const sys::TaskLook& look, sys::MappingLook& mappings,
                                                               image::Set& set) {
  std::vector<std::unique_ptr<DumpTask>> tasks;
  std::map<HostPid, DumpTask*> by_pid;
  std::set<pid_t> own;
  for (tracee::StoppedTask& from : stopped) {
    own.insert(from.pid.value);
    auto task = std::make_unique<DumpTask>();
    task->pid = from.pid;
    task->zombie = from.zombie || from.threads.empty();
    task->job_stopped = from.job_stopped;
    task->stop_signal = from.stop_signal;
    if (const auto parent = by_pid.find(from.parent); parent != by_pid.end()) {
      task->parent = parent->second;
    }
    by_pid.emplace(from.pid, task.get());
    if (from.leader_ended && !task->zombie) {
      task->leader_ended = true;
      task->pid = from.threads.front().tid();
    }
    FERRY_CHECK(read_procfs(*task, from.pid, mappings).during("reading /proc of pid {}", from.pid));
    if (!task->zombie) {
      FERRY_TRY(task->process, tracee::Process::of(task->pid, std::move(from.threads)));
      FERRY_CHECK(read_threads(*task, from.pid, look));
    }
    tasks.push_back(std::move(task));
  }
  for (auto& task : tasks) {
    const bool outer_session = is_from_outside(task->stat.session, own);
    if (outer_session && !options.shell_job) {
      return fail(Kind::unsupported,
                  "pid {} belongs to the session of a shell (session {}) outside of the tree; start it with setsid(1), "
                  "or use --shell-job",
                  task->pid, task->stat.session);
    }
    pb::PstreeEntry entry;
    entry.set_pid(static_cast<std::uint32_t>(task->ns_pid.value));
    entry.set_ppid(task->parent == nullptr ? 0 : static_cast<std::uint32_t>(task->parent->ns_pid.value));
    // What the root has from outside is known by its number; 0 is anything else from there.
    const DumpTask& root = *tasks.front();
    const bool outer_group = outer_session && task->ns_pgid != root.ns_pgid && is_from_outside(task->stat.pgrp, own);
    entry.set_pgid(outer_group ? 0 : static_cast<std::uint32_t>(task->ns_pgid.value));
    entry.set_sid(outer_session && task->ns_sid != root.ns_sid ? 0 : static_cast<std::uint32_t>(task->ns_sid.value));
    if (task->leader_ended) {
      entry.add_threads(static_cast<std::uint32_t>(task->ns_pid.value));
    }
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

void add_ended_leaders(const std::vector<std::unique_ptr<DumpTask>>& tasks, image::Set& set) {
  for (const auto& task : tasks) {
    if (!task->leader_ended || task->zombie) {
      continue;
    }
    // It has what another thread has, as far as anything needs it to have something.
    pb::CoreEntry core = *task->core;
    core.mutable_tc()->set_ferry_leader_ended(true);
    core.mutable_tc()->set_exit_code(static_cast<std::uint32_t>(task->stat.exit_code));
    core.mutable_thread_info()->set_clear_tid_addr(0);
    pb::ThreadCoreEntry& thread = *core.mutable_thread_core();
    thread.set_futex_rla(0);
    thread.clear_rseq_entry();
    thread.clear_sas();
    thread.clear_signals_p();
    thread.clear_ferry_restart();
    thread.clear_ferry_syscall_dispatch();
    thread.set_comm(task->stat.comm);
    core.mutable_tc()->set_comm(task->stat.comm);
    task->core->mutable_thread_core()->set_blk_sigset(task->core->tc().blk_sigset());
    task->core->clear_tc();
    task->core = &set.add(Name{Type::core, static_cast<std::uint64_t>(task->ns_pid.value)}, std::move(core));
  }
}

}  // namespace ferry::engine
