// Files of procfs that tell of processes which are dead.
//
// Such a file answers every read with ESRCH.  It comes back by a process of the same number that lives
// while the file is opened.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::state::proc_file {

// The numbers in a path below a procfs: "/proc/42/task/43/stat" is of process 42 and its thread 43.
struct Numbers {
  std::optional<std::uint32_t> process, thread;
};
Numbers numbers_in(std::string_view path);
// The path with another process, which has one thread, in place of process or thread `pid`.
std::string with_pid(const std::string& path, pid_t pid, pid_t other);

// A child of this process that sleeps in the pid namespace of `root`; has the number `wanted` there if that one
// is free, 0 for any.  The caller kills and waits for it.
Result<pid_t> make_sleeper(HostPid root, pid_t wanted);

// The processes that stand in for dead ones, children of this process until end().
class DeadProcesses {
 public:
  DeadProcesses() = default;
  ~DeadProcesses();
  DeadProcesses(const DeadProcesses&) = delete;
  DeadProcesses& operator=(const DeadProcesses&) = delete;

  // The pid, as the pid namespace of `root` counts, of a process that stands in for `wanted`; another number
  // if that one is taken.
  Result<pid_t> make(HostPid root, pid_t wanted);
  Result<void> end();

 private:
  struct Stand {
    pid_t inner, ours;
  };
  std::map<pid_t, Stand> stands_;
};

}  // namespace ferry::state::proc_file
