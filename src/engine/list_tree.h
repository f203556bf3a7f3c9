// The processes of a running tree.
#pragma once

#include <vector>

#include "base/ids.h"
#include "sys/task_look.h"

namespace ferry::engine {

// As they are now, parents before children, whichever thread made them.  A tree changes while one looks.
// `look`: for processes of many threads, opened when there is one.
std::vector<HostPid> list_tree(HostPid root, sys::TaskLook* look = nullptr);

}  // namespace ferry::engine
