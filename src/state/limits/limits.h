// Limits and attributes of processes and threads: resource limits, scheduling, names, OOM score, login
// id, personality, membarrier registrations and other prctl(2) settings.
// Source: prlimit(2), sched_setattr(2), ioprio_set(2), proc(5), prctl(2), membarrier(2).
#pragma once

#include <string_view>

#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::limits {

Answers ask(DumpTask& task, tracee::Batch& batch);
Answers ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch);
// In place of a question, for a thread that is like another one that was asked.
void answer_like(const DumpTask& task, DumpThread& thread);
Result<void> collect(DumpTask& task, DumpContext& context);
Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext& context);

// Resource limits and OOM score take effect at once, from outside; so not before the task has its
// descriptors and mappings.  What cannot be set without CAP_SYS_RESOURCE is an error only if it differs.
Result<void> restore(RestoreTask& task, RestoreContext& context, tracee::Batch& batch);
// Scheduling takes effect at once, from outside; name, personality and timer slack with the batch.
Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext& context, tracee::Batch& batch);
// Last of all: from then on the thread's system calls may go to the program instead of the kernel.
Result<void> restore_dispatch(RestoreTask& task, const RestoreThread& thread);

// The nice value in the text of /proc/PID/autogroup: "/autogroup-25 nice 5\n".
Result<int> parse_autogroup(std::string_view text);

}  // namespace ferry::state::limits
