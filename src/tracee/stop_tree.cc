#include "tracee/stop_tree.h"

#include <linux/kcmp.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "base/log.h"
#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::tracee {
namespace {

// ptrace(2) says EPERM of a thread that has just ended, as of one that it may not touch.
bool has_ended(int proc, int tid) {
  const auto text = sys::read_file_at(proc, fmt::format("task/{}/stat", tid));
  const auto stat = text.has_value() ? sys::parse_stat(*text) : Result<sys::Stat>(tl::unexpect, text.error());
  return !stat.has_value() || stat->state == 'Z' || stat->state == 'X';
}

constexpr Deadline::Clock::duration kSoon = std::chrono::milliseconds(10);

class Stopper {
 public:
  Stopper(const Deadline& deadline, const sys::TaskLook* look) : deadline_(deadline), look_(look) {}

  Result<std::vector<StoppedTask>> run(HostPid root, Freezer& freezer) {
    frozen_ = freezer.was_frozen() ? &freezer : nullptr;
    for (;;) {
      order_.clear();
      fresh_.clear();
      FERRY_CHECK(visit(root, HostPid(0)));
      if (fresh_.empty()) {
        break;
      }
      for (const auto& [pid, index] : fresh_) {
        if (auto done = tasks_.at(pid).threads.at(index).interrupt();
            !done.has_value() && done.error().os_errno != ESRCH) {
          return tl::unexpected(std::move(done).error());
        }
      }
      // A thread in the v1 freezer stops only when it is thawed, and then at once; so nothing of the
      // program runs in between.
      FERRY_CHECK(freezer.thaw());
      for (const auto& [pid, index] : fresh_) {
        FERRY_CHECK(await(tasks_.at(pid), index));
      }
      forget_dead();
    }
    std::vector<StoppedTask> out;
    for (const HostPid pid : order_) {
      StoppedTask& task = tasks_.at(pid);
      std::sort(task.threads.begin() + (task.threads.empty() || task.leader_ended ? 0 : 1), task.threads.end(),
                [](const Thread& a, const Thread& b) { return a.tid() < b.tid(); });
      out.push_back(std::move(task));
    }
    return out;
  }

 private:
  Result<void> visit(HostPid pid, HostPid parent) {
    if (deadline_.passed()) {
      return sys_fail(ETIMEDOUT, fmt::format("the tree grows faster than it can be stopped, at pid {}", pid));
    }
    auto proc = sys::open_proc(pid);
    if (!proc.has_value()) {
      return parent.value == 0 ? Result<void>(tl::unexpected(std::move(proc).error())) : Result<void>{};
    }
    auto stat_text = sys::read_file_at(proc->get(), "stat");
    if (!stat_text.has_value()) {
      return parent.value == 0 ? Result<void>(tl::unexpected(std::move(stat_text).error())) : Result<void>{};
    }
    FERRY_TRY(sys::Stat stat, sys::parse_stat(*stat_text));
    if (frozen_ != nullptr && sys::read_file_at(proc->get(), "wchan").value_or("") == "do_signal_stop") {
      // A stop for job control: PTRACE_SEIZE waits until the task has turned it into a trap, which it does not
      // do in the freezer (ptrace_attach, JOBCTL_TRAPPING).
      FERRY_CHECK(frozen_->thaw());
      FERRY_TRY(const std::string thawed, sys::read_file_at(proc->get(), "stat"));
      FERRY_TRY(stat, sys::parse_stat(thawed));
    }
    StoppedTask& task = tasks_[pid];
    if (task.pid.value != 0 && task.start_time != stat.start_time) {
      return fail(Kind::gone, "pid {} was used again while the tree was being stopped", pid);
    }
    task.pid = pid;
    task.parent = parent;
    task.start_time = stat.start_time;
    if (stat.state == 'T' && task.threads.empty()) {
      task.job_stopped = true;
    }
    order_.push_back(pid);
    auto tids = sys::numeric_entries(proc->get(), "task");
    task.leader_ended = stat.state == 'Z' && tids.has_value() && tids->size() > 1;
    if ((stat.state == 'Z' && !task.leader_ended) || !tids.has_value()) {
      task.zombie = true;
      return {};
    }
    if (task.leader_ended) {
      std::erase(*tids, pid.value);  // ptrace(2) does not attach to the dead
    }
    forget_kernel_threads(proc->get(), pid, *tids);
    // Leader first; the kernel lists it so, but nothing promises it.
    std::sort(tids->begin(), tids->end(),
              [&](int a, int b) { return std::pair(a != pid.value, a) < std::pair(b != pid.value, b); });
    std::unordered_set<int> known;
    for (const Thread& thread : task.threads) {
      known.insert(thread.tid().value);
    }
    for (const int tid : *tids) {
      if (known.contains(tid)) {
        continue;
      }
      auto seized = Thread::seize(HostPid(tid), PTRACE_O_TRACESYSGOOD);
      if (!seized.has_value()) {
        if (seized.error().os_errno == ESRCH || has_ended(proc->get(), tid)) {
          task.zombie = tid == pid.value && tids->size() == 1;
          continue;
        }
        const auto status = sys::read_file_at(proc->get(), "status");
        if (status.has_value()) {
          const auto parsed = sys::parse_status(*status);
          if (parsed.has_value() && parsed->tracer != 0) {
            return fail(Kind::denied, "pid {} is traced by pid {} (a debugger or strace): end that first", pid,
                        parsed->tracer);
          }
        }
        return Result<void>(tl::unexpected(std::move(seized).error())).during("stopping pid {}", pid);
      }
      task.threads.push_back(std::move(*seized));
      fresh_.emplace_back(pid, task.threads.size() - 1);
    }
    if (look_ == nullptr) {
      return {};
    }
    const auto childless =
        tids->size() >= sys::TaskLook::kWorthIt ? look_->childless_threads_of(pid) : std::unordered_set<pid_t>();
    for (const int tid : *tids) {
      if (childless.contains(tid)) {
        continue;
      }
      const auto text = sys::read_file_at(proc->get(), fmt::format("task/{}/children", tid));
      if (!text.has_value()) {
        continue;  // the thread has just ended
      }
      FERRY_TRY(const auto children, sys::parse_children(*text));
      for (const HostPid child : children) {
        FERRY_CHECK(visit(child, pid));
      }
    }
    return {};
  }

  // Workers of an io_uring are listed with the threads of the program, and never run a line of it.
  void forget_kernel_threads(int proc, HostPid pid, std::vector<int>& tids) const {
    constexpr std::uint64_t kWorker = 0x10;  // PF_IO_WORKER in include/linux/sched.h
    std::unordered_map<pid_t, std::uint64_t> flags;
    if (look_ != nullptr && look_->is_open() && tids.size() >= sys::TaskLook::kWorthIt) {
      const auto words = look_->threads_of(pid);
      for (const sys::TaskWords& w : words.has_value() ? *words : std::vector<sys::TaskWords>()) {
        flags[static_cast<pid_t>(w.tid)] = w.nature.flags;
      }
    }
    std::erase_if(tids, [&](int tid) {
      if (tid == pid.value) {
        return false;
      }
      if (const auto known = flags.find(tid); known != flags.end()) {
        return (known->second & kWorker) != 0;
      }
      // The kernel names them; only what is called like one costs the look at its flags, which takes four times as
      // long.
      const auto name = sys::read_file_at(proc, fmt::format("task/{}/comm", tid));
      if (!name.has_value() || !name->starts_with("iou-")) {
        return false;
      }
      const auto text = sys::read_file_at(proc, fmt::format("task/{}/stat", tid));
      const auto stat = text.has_value() ? sys::parse_stat(*text) : Result<sys::Stat>(tl::unexpect, text.error());
      return stat.has_value() && (stat->flags & kWorker) != 0;
    });
  }

  // A thread inside vfork(2) does not stop before its child has left the memory that they share, so the
  // child, stopped or about to be, has to go on until it executes a program or ends.
  Result<void> free_vfork_child(HostPid parent, HostPid tid) {
    const auto text = sys::read_file(fmt::format("/proc/{}/task/{}/children", parent, tid));
    if (!text.has_value()) {
      return {};
    }
    FERRY_TRY(const auto children, sys::parse_children(*text));
    for (const HostPid child : children) {
      const auto known = tasks_.find(child);
      if (known == tasks_.end() || ::syscall(SYS_kcmp, parent.value, child.value, KCMP_VM, 0, 0) != 0) {
        continue;
      }
      for (Thread& thread : known->second.threads) {
        if (thread.tid().value == 0 || running_again_.contains(thread.tid())) {
          continue;
        }
        const HostPid of_child = thread.tid();
        const auto stop = thread.poll();
        if (!stop.has_value()) {
          continue;  // it has just ended
        }
        if (!stop->has_value()) {
          FERRY_CHECK(free_vfork_child(child, of_child));
          continue;
        }
        log::debug("task {} is in vfork: its child {} goes on", tid, of_child);
        FERRY_CHECK(thread.resume(PTRACE_CONT, (*stop)->why == Stop::Why::signal ? (*stop)->signal : 0));
        running_again_.insert(of_child);
      }
    }
    return {};
  }

  // Waits for a stop, and does what it takes for it to come.
  Result<Stop> next_stop(const StoppedTask& task, Thread& thread) {
    if (running_again_.erase(thread.tid()) != 0) {
      (void)thread.interrupt();  // if it has ended, the wait says so
    }
    for (;;) {
      auto stop = thread.wait(Deadline(std::min(kSoon, deadline_.left())));
      if (stop.has_value() || stop.error().os_errno != ETIMEDOUT) {
        return stop;
      }
      if (deadline_.passed()) {
        return running_again_.empty()
                   ? std::move(stop)
                   : fail(Kind::unsupported,
                          "task {} is in vfork(2), and its child {} neither executes a program nor ends", thread.tid(),
                          *running_again_.begin());
      }
      FERRY_CHECK(free_vfork_child(task.pid, thread.tid()));
    }
  }

  Result<void> await(StoppedTask& task, std::size_t index) {
    Thread& thread = task.threads.at(index);
    while (thread.tid().value != 0) {  // 0: it ended while it was a vfork child that went on
      auto stop = next_stop(task, thread);
      if (!stop.has_value()) {
        if (stop.error().kind == Kind::gone || stop.error().os_errno == ECHILD) {
          thread.forget();
          return {};
        }
        return Result<void>(tl::unexpected(std::move(stop).error())).during("stopping pid {}", task.pid);
      }
      switch (stop->why) {
        case Stop::Why::interrupt:
          return {};
        case Stop::Why::group_stop:
          task.job_stopped = true;
          task.stop_signal = stop->signal;
          return {};
        case Stop::Why::signal:
          // On its way in when we came: let the kernel deliver it, the interrupt stop follows.
          FERRY_CHECK(thread.resume(PTRACE_CONT, stop->signal));
          break;
        case Stop::Why::syscall:
        case Stop::Why::event:
          FERRY_CHECK(thread.resume(PTRACE_CONT));
          break;
      }
    }
    return {};
  }

  void forget_dead() {
    for (auto& [pid, task] : tasks_) {
      std::erase_if(task.threads, [](const Thread& t) { return t.tid().value == 0; });
    }
  }

  const Deadline& deadline_;
  const sys::TaskLook* look_;  // nullptr: without children
  Freezer* frozen_ = nullptr;
  std::map<HostPid, StoppedTask> tasks_;
  std::vector<HostPid> order_;
  std::vector<std::pair<HostPid, std::size_t>> fresh_;
  std::set<HostPid> running_again_;  // threads that were let go once more
};

}  // namespace

Result<Freezer> Freezer::open(const std::string& directory) {
  Freezer out;
  if (directory.empty()) {
    return out;
  }
  out.directory_ = directory;
  if (auto state = sys::read_file(directory + "/freezer.state"); state.has_value()) {
    out.was_frozen_ = *state != "THAWED\n";
    return out;
  }
  auto state = sys::read_file(directory + "/cgroup.freeze");
  if (!state.has_value()) {
    return Result<Freezer>(tl::unexpected(std::move(state).error())).during("freezer cgroup {}", directory);
  }
  out.v2_ = true;
  out.was_frozen_ = *state == "1\n";
  return out;
}

Result<void> Freezer::thaw() {
  if (!was_frozen_) {
    return {};
  }
  return v2_ ? sys::write_file(directory_ + "/cgroup.freeze", "0")
             : sys::write_file(directory_ + "/freezer.state", "THAWED");
}

Result<void> Freezer::restore_state() {
  if (!was_frozen_) {
    return {};
  }
  return v2_ ? sys::write_file(directory_ + "/cgroup.freeze", "1")
             : sys::write_file(directory_ + "/freezer.state", "FROZEN");
}

Result<std::vector<StoppedTask>> stop_tree(HostPid root, Freezer& freezer, const Deadline& deadline,
                                           const sys::TaskLook& look) {
  return Stopper(deadline, &look).run(root, freezer);
}

Result<StoppedTask> stop_process(HostPid pid, const Deadline& deadline) {
  Freezer none;
  FERRY_TRY(auto tasks, Stopper(deadline, nullptr).run(pid, none));
  return std::move(tasks.front());
}

}  // namespace ferry::tracee
