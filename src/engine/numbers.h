// Our own numbers of tasks that live in another pid namespace, by theirs.
#pragma once

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "tracee/deadline.h"

namespace ferry::engine {

class Numbers {
 public:
  // Of the pid namespace that `member` lives in.
  static Result<Numbers> of(HostPid member);
  // `parent`: of the process, or the process itself for a thread of it; looked through by older kernels.
  Result<HostPid> find(NsPid wanted, HostPid parent, bool thread = false) const;
  // Whether a task has the number that is not dead.
  [[nodiscard]] bool is_lived_under(NsPid number) const;

 private:
  UniqueFd ns_;  // not open: the numbers are the same
};

// Patience with numbers that clone3(2) says are taken (EEXIST) though nobody lives under them.  Such a number is
// free in a moment: when a parent has waited for its dead child; when the last dead member of a process group
// or session of that number is waited for; or, since Linux 6.15, when the task that buries a thread gets to
// free_pids(), which release_task() does after the thread is gone from sight and its process may be waited for.
class Vacancy {
 public:
  // Waits a little; false if it is of no use, or took too long.
  bool await(const Numbers& numbers, NsPid number);

 private:
  tracee::Deadline deadline_{std::chrono::seconds(10)};
};

}  // namespace ferry::engine
