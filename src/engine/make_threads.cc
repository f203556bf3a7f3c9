#include <linux/sched.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "engine/numbers.h"
#include "engine/restore_tree.h"

namespace ferry::engine {
namespace {

using state::RestoreTask;
using state::RestoreThread;

constexpr std::chrono::seconds kBirthTime{30};

// The numbers that were taken.
Result<std::vector<NsPid>> clone_threads(RestoreTask& task, const std::vector<NsPid>& wanted) {
  constexpr std::size_t kPerBatch = 20'000;
  constexpr std::uint64_t kFlags =
      CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PTRACE;
  std::vector<NsPid> taken;
  for (std::size_t first = 0; first < wanted.size(); first += kPerBatch) {
    tracee::Batch batch;
    std::vector<std::pair<NsPid, tracee::Value>> made;
    for (std::size_t i = first; i < std::min(wanted.size(), first + kPerBatch); ++i) {
      clone_args args{};
      args.flags = kFlags;
      args.set_tid_size = 1;
      const auto number = batch.object(wanted[i].value);
      const auto at = batch.object(args);
      batch.point(at, offsetof(clone_args, set_tid), number);
      made.emplace_back(wanted[i], batch.may(SYS_clone3, {at, sizeof args}));
    }
    FERRY_TRY(const tracee::Replies replies, task.process.run(task.leader(), batch));
    for (const auto& [number, value] : made) {
      if (replies[value] == -EEXIST) {
        taken.push_back(number);
      } else if (replies[value] < 0) {
        return sys_fail(static_cast<int>(-replies[value]), fmt::format("clone3(thread {})", number));
      }
    }
  }
  return taken;
}

}  // namespace

Result<void> make_threads(RestoreTask& task) {
  if (task.threads.size() == 1) {
    return {};
  }
  FERRY_TRY(const Numbers numbers, Numbers::of(task.pid));
  std::vector<NsPid> wanted;
  for (std::size_t i = 1; i < task.threads.size(); ++i) {
    wanted.push_back(task.threads[i].ns_tid);
  }
  for (Vacancy vacancy; !wanted.empty();) {
    FERRY_TRY(
        wanted,
        clone_threads(task, wanted).during("making {} threads of pid {}", task.threads.size() - 1, task.ns_pid()));
    if (!wanted.empty() && !vacancy.await(numbers, wanted.front())) {
      return sys_fail(EEXIST,
                      fmt::format("thread id {} is taken; restore into a pid namespace, or when it is free: clone3",
                                  wanted.front()));
    }
  }
  const tracee::Deadline deadline(kBirthTime);
  for (RestoreThread& thread : task.threads) {
    if (thread.index == 0) {
      continue;
    }
    FERRY_TRY(thread.tid, numbers.find(thread.ns_tid, task.pid, true));
    task.process.threads().push_back(tracee::Thread::adopt(thread.tid));
    FERRY_CHECK(task.process.threads().back().wait(deadline).during("first stop of thread {}", thread.ns_tid));
  }
  return {};
}

}  // namespace ferry::engine
