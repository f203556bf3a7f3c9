#include <linux/sched.h>
#include <sys/syscall.h>

#include <algorithm>

#include "engine/numbers.h"
#include "engine/restore_tree.h"

namespace ferry::engine {
namespace {

using state::RestoreTask;
using state::RestoreThread;

constexpr std::chrono::seconds kBirthTime{30};

}  // namespace

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
  FERRY_TRY(const Numbers numbers, Numbers::of(task.pid));
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
