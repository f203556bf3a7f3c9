// Which processes of a tree may have pages in common.
#pragma once

#include <memory>
#include <set>
#include <vector>

#include "state/dump.h"

namespace ferry::state::memory {

// Those that have their memory from the same execve(2) as another one of the tree: forked from it, or from the same.
// Where a program lies is drawn anew by every execve(2), and told by the borders in mm-PID.
std::set<const DumpTask*> relatives_in(const std::vector<std::unique_ptr<DumpTask>>& tasks);

}  // namespace ferry::state::memory
