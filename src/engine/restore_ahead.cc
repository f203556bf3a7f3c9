// The part of a restore that goes ahead of time, and how the rest takes it over (restore_story.h).
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <tuple>

#include "base/log.h"
#include "engine/restore_story.h"
#include "state/binfmt_misc/binfmt_misc.h"
#include "state/ipc/ipc.h"
#include "state/mount/mount.h"
#include "state/uts/uts.h"
#include "sys/file.h"

namespace ferry::engine {
namespace {

using state::RestoreTask;

constexpr std::chrono::seconds kEndTime{10};

// What makes a process of one set the same as one of another: its place in the tree.
auto place_of(const RestoreTask& task) {
  return std::tuple(task.entry->pid(), task.entry->ppid(), task.entry->pgid(), task.entry->sid(), task.mm != nullptr);
}

}  // namespace

Result<void> RestoreStory::grow_ahead(int buffer) {
  FERRY_CHECK(grow_tree(context_, layout_));
  const std::vector<sys::PageRange> taken = layout_.taken();
  for (auto& task : tasks_) {
    if (task->mm == nullptr) {
      continue;
    }
    tracee::Batch mappings;
    FERRY_TRY(auto staged, state::memory::Staged::plan(*task->mm, taken, buffer, mappings));
    if (!mappings.empty()) {
      FERRY_CHECK(task->process.run(task->leader(), mappings).during("mapping memory of pid {} ahead", task->ns_pid()));
    }
    ahead_.emplace(task->ns_pid(), Ahead{task.get(), std::move(staged)});
  }
  return {};
}

Result<void> RestoreStory::write_ahead(NsPid pid, std::span<const sys::Placed> pages) {
  const auto found = ahead_.find(pid);
  if (found == ahead_.end()) {
    return fail(Kind::gone, "pid {} has no skeleton yet", pid);
  }
  return found->second.memory.write(*found->second.task, pages).during("memory of pid {}", pid);
}

Result<void> RestoreStory::zero_ahead(NsPid pid, std::uint64_t vaddr, std::uint64_t bytes) {
  const auto found = ahead_.find(pid);
  if (found == ahead_.end()) {
    return fail(Kind::gone, "pid {} has no skeleton yet", pid);
  }
  return found->second.memory.write_zeros(vaddr, bytes).during("memory of pid {}", pid);
}

Result<void> RestoreStory::drop_ahead(NsPid pid, const std::vector<sys::PageRange>& stale) {
  const auto found = ahead_.find(pid);
  if (found == ahead_.end()) {
    return {};  // nothing is there that could be stale
  }
  tracee::Batch batch;
  found->second.memory.drop(stale, batch);
  if (batch.empty()) {
    return {};
  }
  RestoreTask& task = *found->second.task;
  FERRY_CHECK(task.process.run(task.leader(), batch).during("dropping stale memory of pid {}", pid));
  return {};
}

bool RestoreStory::same_processes(const RestoreStory& other) const {
  return std::equal(tasks_.begin(), tasks_.end(), other.tasks_.begin(), other.tasks_.end(),
                    [](const auto& a, const auto& b) { return place_of(*a) == place_of(*b); });
}

Result<void> RestoreStory::evacuate_children_of_root() {
  for (auto& [pid, ahead] : ahead_) {
    if (ahead.task->parent != nullptr) {
      FERRY_CHECK(ahead.memory.evacuate(*ahead.task).during("memory of pid {}", pid));
    }
  }
  return {};
}

// Everything but the root ends, and the root forgets that it ever had children.
Result<void> RestoreStory::forget_children_of_root() {
  RestoreTask& root = context_.root();
  std::vector<tracee::Thread*> threads;
  for (auto& task : tasks_) {
    if (task.get() != &root && task->mm != nullptr) {
      ::kill(task->pid.value, SIGKILL);
      for (auto& thread : task->process.threads()) {
        threads.push_back(&thread);
      }
    }
  }
  FERRY_CHECK(tracee::await_end(threads, tracee::Deadline(kEndTime))
                  .during("ending processes that are not in the tree any more"));
  // They are children of the root now, if they were not before: it is the init of its namespace.
  tracee::Batch reap;
  for (std::size_t i = 1; i < tasks_.size(); ++i) {
    reap.may(SYS_wait4, {-1, 0, WNOHANG | __WALL, 0});
  }
  struct {
    std::uint64_t handler, flags, restorer, mask;
  } action{1, 0, 0, 0};  // SIG_IGN: throws away what is pending (sigaction(2), notes)
  reap.must("rt_sigaction(SIGCHLD, SIG_IGN)", SYS_rt_sigaction, {SIGCHLD, reap.object(action), 0, sizeof action.mask});
  action.handler = 0;  // SIG_DFL
  reap.must("rt_sigaction(SIGCHLD, SIG_DFL)", SYS_rt_sigaction, {SIGCHLD, reap.object(action), 0, sizeof action.mask});
  FERRY_CHECK(root.process.run(root.leader(), reap).during("reaping processes that are not in the tree any more"));
  return {};
}

// Whoever was cloned from a root that holds memory already has it too.
Result<void> RestoreStory::clear_new_ones() {
  for (auto& task : tasks_) {
    if (task->mm == nullptr || task->parent == nullptr) {
      continue;
    }
    tracee::Batch batch;
    state::memory::add_clearing(batch, layout_.area, layout_.kernel);
    FERRY_CHECK(task->process.run(task->leader(), batch).during("emptying the skeleton of pid {}", task->ns_pid()));
  }
  return {};
}

Result<void> RestoreStory::renew_namespaces(const image::Set& before) {
  FERRY_CHECK(state::uts::renew(context_, before));
  FERRY_CHECK(state::mount::renew(context_, before));
  FERRY_CHECK(state::binfmt_misc::check_same(before, set_));
  FERRY_CHECK(state::ipc::renew(context_, before));
  laps_.add("renew namespaces");
  return {};
}

Result<void> RestoreStory::take_over(RestoreStory& ahead) {
  layout_ = ahead.layout_;
  FERRY_CHECK(check_layout(context_, layout_));
  const bool same = same_processes(ahead);
  if (!same) {
    log::info("the tree has changed since it was looked at; its skeletons are made anew");
    FERRY_CHECK(ahead.evacuate_children_of_root());
    FERRY_CHECK(ahead.forget_children_of_root());
  }
  RestoreTask& root = context_.root();
  if (root.ns_pid() != ahead.context_.root().ns_pid()) {
    return fail(Kind::corrupt, "the tree has another root, pid {}", root.ns_pid());
  }
  for (std::size_t i = 0; i < (same ? tasks_.size() : 1); ++i) {
    RestoreTask& mine = *tasks_[i];
    RestoreTask& theirs = *ahead.tasks_[i];
    mine.process = std::move(theirs.process);
    mine.pid = theirs.pid;
    mine.controller_pidfd = theirs.controller_pidfd;
    if (!mine.threads.empty()) {
      mine.threads.front().tid = theirs.pid;
    }
    theirs.pid = HostPid();
  }
  for (auto& task : tasks_) {
    if (const auto memory = ahead.ahead_.find(task->ns_pid()); memory != ahead.ahead_.end() && task->mm != nullptr) {
      ahead_.emplace(task->ns_pid(), Ahead{task.get(), std::move(memory->second.memory)});
    }
  }
  ahead.let_go_ = true;
  ahead.network_lock_ = {};
  gate_ = std::move(ahead.gate_);
  FERRY_CHECK(lock_ahead());
  FERRY_CHECK(inside_.enter(root.pid));
  if (!same) {
    FERRY_CHECK(grow_tree(context_, layout_));
    FERRY_CHECK(clear_new_ones());
  }
  return make_all_threads();
}

}  // namespace ferry::engine
