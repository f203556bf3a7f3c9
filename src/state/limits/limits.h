// Limits and attributes of processes and threads: resource limits, scheduling, names, OOM score, login
// id, personality, membarrier registrations and other prctl(2) settings.
// Source: prlimit(2), sched_setattr(2), ioprio_set(2), proc(5), prctl(2), membarrier(2).
#pragma once

#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::limits {

// SCHED_DEADLINE is refused: its admission depends on what else runs on the host.
Result<void> preflight(HostPid pid, const DumpOptions& options);

Answers ask(DumpTask& task, tracee::Batch& batch);
Answers ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch);
Result<void> collect(DumpTask& task, DumpContext& context);
Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext& context);

// Resource limits and OOM score take effect at once, from outside; so not before the task has its
// descriptors and mappings.  What cannot be set without CAP_SYS_RESOURCE is an error only if it differs.
Result<void> restore(RestoreTask& task, RestoreContext& context, tracee::Batch& batch);
// Scheduling takes effect at once, from outside; name, personality and timer slack with the batch.
Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext& context, tracee::Batch& batch);

}  // namespace ferry::state::limits
