// The end of tracing a tree.
#pragma once

#include <vector>

#include "base/error.h"
#include "tracee/deadline.h"
#include "tracee/process.h"

namespace ferry::tracee {

// Detaches all threads of the processes, in their order.  The first of them run by then, and may have ended their
// process: those are waited for, since its parent is told of the end only when their tracer has seen it (ptrace(2)).
Result<void> let_go(const std::vector<Process*>& processes, const Deadline& deadline);

}  // namespace ferry::tracee
