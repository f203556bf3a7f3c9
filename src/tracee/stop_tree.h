// Stopping a whole tree of processes, and finding out what is in it.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "sys/task_look.h"
#include "tracee/deadline.h"
#include "tracee/thread.h"

namespace ferry::tracee {

struct StoppedTask {
  HostPid pid;
  HostPid parent;
  std::uint64_t start_time = 0;  // with the pid the task's identity
  bool zombie = false;           // then there are no threads
  bool job_stopped = false;      // was in a job control stop (SIGSTOP…) before
  int stop_signal = 0;           // which one
  bool leader_ended = false;     // its main thread is a zombie, and not among the threads
  std::vector<Thread> threads;   // leader first, then ascending
};

// The cgroup freezer that a container engine may have put the tree into.  Both versions.
// Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst (cgroup.freeze).
class Freezer {
 public:
  Freezer() = default;
  // An empty directory means: no freezer.
  static Result<Freezer> open(const std::string& directory);
  [[nodiscard]] bool was_frozen() const { return was_frozen_; }
  Result<void> thaw();
  // Back to frozen if it was found so.
  Result<void> restore_state();

 private:
  std::string directory_;
  bool v2_ = false;
  bool was_frozen_ = false;
};

// Seizes every thread of every process of the tree, interrupts all, thaws the freezer, and waits for
// each by its tid; looks again until nothing new appears.  Parents come before their children.
// `look`: for processes of many threads; may be closed.
// On error everything is let go.  Errors: gone if the root is; denied if somebody else traces a task.
Result<std::vector<StoppedTask>> stop_tree(HostPid root, Freezer& freezer, const Deadline& deadline,
                                           const sys::TaskLook& look);
// The same for one process without its children, which is in no freezer.
Result<StoppedTask> stop_process(HostPid pid, const Deadline& deadline);

}  // namespace ferry::tracee
