// How a thread is scheduled: policy, priority, processors, priority of its input and output.
// Source: sched_setattr(2), sched_setaffinity(2), ioprio_set(2).
#pragma once

#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::limits {

Result<void> collect_scheduling(DumpThread& thread);
// From outside; takes effect at once.
Result<void> restore_scheduling(const RestoreThread& thread);

}  // namespace ferry::state::limits
