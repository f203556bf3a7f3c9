// Which groups each thread of a tree stands in, without a procfs file for each of them.
//
// /proc/PID/task/TID/cgroup is one file a thread, and the kernel takes a machine-wide lock for it.  A group
// lists its threads itself (tasks, cgroup.threads), so the threads that stand where one of them stands are
// had by one file a hierarchy, however many they are.
#pragma once

#include <sys/types.h>

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "state/cgroup/membership.h"
#include "state/dump.h"
#include "state/dump_host.h"

namespace ferry::state::cgroup {

class Placement {
 public:
  // Both have to outlive the object.
  Placement(DumpHost& host, const std::vector<std::unique_ptr<DumpTask>>& tasks);
  // Valid as long as the object.
  Result<const Membership*> of(const DumpTask& task, const DumpThread& thread);

 private:
  struct Place {
    Membership membership;
    std::optional<std::vector<pid_t>> threads;  // all that stand there, sorted
  };
  std::optional<std::vector<pid_t>> list(const Membership& membership);

  DumpHost& host_;
  bool many_ = false;
  std::deque<Place> places_;
};

// The numbers in a member list file, sorted.
std::vector<pid_t> parse_members(std::string_view text);

}  // namespace ferry::state::cgroup
