// What /proc shows of a tree of processes, in a form that must be the same before a checkpoint and after
// a restore: host pids, device and inode numbers and counters are left out or replaced.
#pragma once

#include <sys/types.h>

#include <map>
#include <string>

namespace ferry::live {

// "pid 7 tid 8 status" -> lines
using View = std::map<std::string, std::string>;

View look_at(pid_t root);
// One line for every line that only one of the two has; empty if they are the same.
std::string difference(const View& before, const View& after);

}  // namespace ferry::live
