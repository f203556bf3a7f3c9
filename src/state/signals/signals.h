// Signals: actions, masks, what is pending, alternate stacks.
// Source: rt_sigaction(2), sigaltstack(2), ptrace(2) PTRACE_PEEKSIGINFO, rt_sigqueueinfo(2).
#pragma once

#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::signals {

Answers ask(DumpTask& task, tracee::Batch& batch);
Answers ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch);
// In place of a question, for a thread that is like another one that was asked.
void answer_like(const DumpTask& task, DumpThread& thread);
Result<void> collect(DumpTask& task, DumpContext& context);
Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext& context);

// Actions, and signals pending for the whole process.  All signals are blocked while the batch runs.
Result<void> restore(RestoreTask& task, RestoreContext& context, tracee::Batch& batch);
// Alternate stack, and signals pending for the thread.
Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext& context, tracee::Batch& batch);
// Signals that are pending for the process or one of its threads, bit signo-1.
std::uint64_t pending_in(const RestoreTask& task);
// The signal by which a batch is to say that it is at its end: none that is pending, because that one would be
// taken for it and be lost; if there is a choice, one that is ignored by default and not `caught`, so that it does
// nothing should we die meanwhile.
int end_of_batch(std::uint64_t pending, std::uint64_t caught);
// The mask to give the thread last of all.
std::uint64_t blocked_by(const RestoreTask& task, const RestoreThread& thread);

}  // namespace ferry::state::signals
