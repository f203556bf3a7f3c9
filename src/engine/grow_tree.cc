#include <linux/sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>

#include "base/log.h"
#include "engine/restore_tree.h"
#include "sys/file.h"

namespace ferry::engine {
namespace {

using state::RestoreTask;
using state::RestoreThread;

constexpr std::chrono::seconds kBirthTime{30};

// The pids of a process's threads as we see them, by their innermost number.
Result<std::map<NsPid, HostPid>> threads_by_inner_number(HostPid pid) {
  FERRY_TRY(const auto proc, sys::open_proc(pid));
  FERRY_TRY(const auto tids, sys::numeric_entries(proc.get(), "task"));
  std::map<NsPid, HostPid> out;
  for (const int tid : tids) {
    FERRY_TRY(const auto text, sys::read_file_at(proc.get(), fmt::format("task/{}/status", tid)));
    FERRY_TRY(const auto status, sys::parse_status(text));
    if (status.ns_pid.size() <= 1) {  // our own pid namespace: the numbers are the same
      for (const int same : tids) {
        out[NsPid(same)] = HostPid(same);
      }
      return out;
    }
    out[NsPid(status.ns_pid.back())] = HostPid(tid);
  }
  return out;
}

Result<HostPid> child_by_inner_number(HostPid parent, NsPid wanted) {
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/task/{}/children", parent, parent)));
  FERRY_TRY(const auto children, sys::parse_children(text));
  for (const HostPid child : children) {
    FERRY_TRY(const auto status_text, sys::read_file(fmt::format("/proc/{}/status", child)));
    FERRY_TRY(const auto status, sys::parse_status(status_text));
    if (!status.ns_pid.empty() && status.ns_pid.back() == wanted.value) {
      return child;
    }
  }
  return fail(Kind::gone, "the new process {} is not among the children of pid {}", wanted, parent);
}

class Grower {
 public:
  Grower(state::RestoreContext& context, const Layout& layout) : context_(context), layout_(layout) {}

  Result<void> run() {
    RestoreTask& root = context_.root();
    FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/status", root.pid)));
    FERRY_TRY(const auto status, sys::parse_status(text));
    nested_ = status.ns_pid.size() > 1;
    FERRY_CHECK(children_of(root, 0));
    FERRY_CHECK(set_groups());
    return bury_zombies();
  }

 private:
  [[nodiscard]] static std::uint32_t sid(const RestoreTask& task) { return task.entry->sid(); }
  [[nodiscard]] static bool leads(const RestoreTask& task) { return sid(task) == task.entry->pid(); }

  // `born_sid`: the session that `task` was cloned into.
  Result<void> children_of(RestoreTask& task, std::uint32_t born_sid) {
    std::vector<RestoreTask*> before;  // the task's own setsid(2)
    std::vector<RestoreTask*> after;
    std::vector<RestoreTask*> by_sibling;
    for (const auto& child : context_.tasks) {
      if (child->parent != &task) {
        continue;
      }
      if (leads(*child) || sid(*child) == sid(task)) {
        after.push_back(child.get());
      } else if (leads(task) && sid(*child) == born_sid) {
        before.push_back(child.get());
      } else {
        by_sibling.push_back(child.get());
      }
    }
    for (RestoreTask* child : before) {
      FERRY_CHECK(clone(task, *child, 0));
    }
    if (leads(task)) {
      tracee::Batch batch;
      batch.may(SYS_setsid, {});  // the init of a new pid namespace may be one already
      FERRY_CHECK(task.process.run(task.leader(), batch));
    }
    for (RestoreTask* child : after) {
      FERRY_CHECK(clone(task, *child, 0));
    }
    // A child that was handed to this parent when its own died is in the session of a living sibling:
    // that one clones it with CLONE_PARENT, which makes them siblings again.
    const std::uint32_t born_after = sid(task);
    for (RestoreTask* child : before) {
      FERRY_CHECK(children_of(*child, born_sid));
    }
    for (RestoreTask* child : after) {
      FERRY_CHECK(children_of(*child, born_after));
    }
    for (RestoreTask* child : by_sibling) {
      const auto leader = std::find_if(after.begin(), after.end(), [&](const RestoreTask* other) {
        return other->entry->pid() == sid(*child) && leads(*other) && other->mm != nullptr;
      });
      if (leader == after.end()) {
        return fail(Kind::unsupported, "pid {} is in session {}, whose leader is neither its parent nor a sibling",
                    child->ns_pid(), sid(*child));
      }
      FERRY_CHECK(clone(**leader, *child, CLONE_PARENT));
      FERRY_CHECK(children_of(*child, sid(*child)));
    }
    return {};
  }

  Result<void> clone(RestoreTask& from, RestoreTask& child, std::uint64_t flags) {
    clone_args args{};
    args.flags = CLONE_PTRACE | flags;
    if (child.ids != nullptr && from.ids != nullptr && child.ids->files_id() == from.ids->files_id() && flags == 0) {
      args.flags |= CLONE_FILES;
    }
    args.exit_signal = flags == 0 ? SIGCHLD : 0;
    args.set_tid_size = 1;
    const pid_t wanted = child.ns_pid().value;
    tracee::Batch batch;
    const auto number = batch.object(wanted);
    const auto at = batch.object(args);
    batch.point(at, offsetof(clone_args, set_tid), number);
    batch.must("clone3", SYS_clone3, {at, sizeof args});
    FERRY_CHECK(from.process.run(from.leader(), batch).during("making process {}", wanted));
    HostPid pid(wanted);
    if (nested_) {
      const HostPid parent = flags == 0 ? from.pid : from.parent->pid;
      FERRY_TRY(pid, child_by_inner_number(parent, child.ns_pid()));
    }
    child.pid = pid;
    std::vector<tracee::Thread> threads;
    threads.push_back(tracee::Thread::adopt(pid));
    FERRY_TRY(child.process, tracee::Process::of(pid, std::move(threads)));
    FERRY_CHECK(child.leader().wait(tracee::Deadline(kBirthTime)).during("first stop of process {}", wanted));
    child.process.inherit_area(layout_.area);
    child.process.set_disposable();
    child.controller_pidfd = from.controller_pidfd;
    if (!child.threads.empty()) {
      child.threads.front().tid = pid;
    }
    return {};
  }

  Result<void> set_groups() {
    // A group exists once its leader is in it; a group whose leader is dead needs it nevertheless.
    const auto join = [&](RestoreTask& task, std::uint32_t group) -> Result<void> {
      tracee::Batch batch;
      batch.must("setpgid", SYS_setpgid, {0, group});
      FERRY_CHECK(task.process.run(task.leader(), batch).during("process group {} of pid {}", group, task.ns_pid()));
      return {};
    };
    for (const auto& task : context_.tasks) {
      if (task->entry->pgid() == task->entry->pid() && !leads(*task)) {
        FERRY_CHECK(join(*task, task->entry->pgid()));
      }
    }
    for (const auto& task : context_.tasks) {
      const std::uint32_t group = task->entry->pgid();
      const bool inherited = task->parent != nullptr && task->parent->entry->pgid() == group && group != 0;
      if (group == task->entry->pid() || group == 0) {
        continue;
      }
      const bool known = std::any_of(context_.tasks.begin(), context_.tasks.end(),
                                     [&](const auto& other) { return other->entry->pid() == group; });
      if (known) {
        FERRY_CHECK(join(*task, group));
      } else if (!inherited && task->parent != nullptr) {
        return fail(Kind::unsupported, "pid {} is in process group {}, whose leader is dead", task->ns_pid(), group);
      }
    }
    return {};
  }

  // A zombie ends here the way it ended there; its parent finds it, and no signal tells of it again.
  Result<void> bury_zombies() {
    for (auto& task : context_.tasks) {
      if (task->mm != nullptr) {
        continue;
      }
      const std::uint32_t code = task->core->tc().exit_code();
      const int signal = static_cast<int>(code & 0x7f);
      const auto prepare = [&](long number, std::uint64_t first, std::uint64_t second) -> Result<void> {
        // The loop's own syscall instruction, from a record of its own.
        tracee::Batch batch;
        batch.may(number, {first, second});
        return task->process.start(task->leader(), batch);
      };
      FERRY_CHECK(task->leader().set_signal_mask(0));
      if (signal == 0) {
        FERRY_CHECK(prepare(SYS_exit_group, code >> 8 & 0xff, 0));
      } else {
        FERRY_CHECK(prepare(SYS_kill, task->entry->pid(), static_cast<std::uint64_t>(signal)));
      }
      const tracee::Deadline deadline(kBirthTime);
      while (task->leader().tid().value != 0) {
        auto stop = task->leader().wait(deadline);
        if (!stop.has_value()) {
          if (stop.error().kind != Kind::gone) {
            return Result<void>(tl::unexpected(std::move(stop).error())).during("the end of process {}", task->ns_pid());
          }
          break;
        }
        FERRY_CHECK(task->leader().resume(PTRACE_CONT, stop->why == tracee::Stop::Why::signal ? stop->signal : 0));
      }
    }
    return {};
  }

  state::RestoreContext& context_;
  const Layout& layout_;
  bool nested_ = false;
};

}  // namespace

Result<void> grow_tree(state::RestoreContext& context, const Layout& layout) { return Grower(context, layout).run(); }

Result<void> make_threads(RestoreTask& task) {
  if (task.threads.size() == 1) {
    return {};
  }
  constexpr std::size_t kPerBatch = 20'000;
  constexpr std::uint64_t kFlags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PTRACE;
  for (std::size_t first = 1; first < task.threads.size(); first += kPerBatch) {
    tracee::Batch batch;
    for (std::size_t i = first; i < std::min(task.threads.size(), first + kPerBatch); ++i) {
      clone_args args{};
      args.flags = kFlags;
      args.set_tid_size = 1;
      const auto number = batch.object(task.threads[i].ns_tid.value);
      const auto at = batch.object(args);
      batch.point(at, offsetof(clone_args, set_tid), number);
      batch.must("clone3(thread)", SYS_clone3, {at, sizeof args});
    }
    FERRY_CHECK(task.process.run(task.leader(), batch).during("making {} threads of pid {}", task.threads.size() - 1, task.ns_pid()));
  }
  FERRY_TRY(const auto numbers, threads_by_inner_number(task.pid));
  const tracee::Deadline deadline(kBirthTime);
  for (RestoreThread& thread : task.threads) {
    if (thread.index == 0) {
      continue;
    }
    const auto found = numbers.find(thread.ns_tid);
    if (found == numbers.end()) {
      return fail(Kind::gone, "thread {} of pid {} is not there", thread.ns_tid, task.ns_pid());
    }
    thread.tid = found->second;
    task.process.threads().push_back(tracee::Thread::adopt(thread.tid));
    FERRY_CHECK(task.process.threads().back().wait(deadline).during("first stop of thread {}", thread.ns_tid));
  }
  return {};
}

}  // namespace ferry::engine
