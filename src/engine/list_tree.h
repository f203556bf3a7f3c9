// The processes of a running tree.
#pragma once

#include <vector>

#include "base/ids.h"

namespace ferry::engine {

// As they are now, parents before children, whichever thread made them.  A tree changes while one looks.
std::vector<HostPid> list_tree(HostPid root);

}  // namespace ferry::engine
