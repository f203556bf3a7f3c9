// What the kernel keeps of a thread's user memory: robust futex list, restartable sequence area, the
// address to clear at exit, and thread-local descriptors.
// Source: get_robust_list(2), rseq(2) (Documentation/userspace-api/rseq.rst), set_tid_address(2),
// set_thread_area(2).
#pragma once

#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::thread_area {

// Before any batch: a thread that was stopped inside a restartable sequence is moved to its abort
// handler, as the kernel itself would do on its next way to user mode.  A batch elsewhere would make the
// kernel forget that the sequence was interrupted.
Result<void> settle_rseq(DumpTask& task, DumpThread& thread);

Answers ask_thread(DumpTask& task, DumpThread& thread, tracee::Batch& batch);
// In place of a question, for a thread that is like another one that was asked.
void answer_like(const DumpTask& task, DumpThread& thread);
Result<void> collect_thread(DumpTask& task, DumpThread& thread, DumpContext& context);

// The same for a set of CRIU's, which keeps such a thread as it was stopped: `registers` are those it is
// about to be given.  Its memory has to be there.
Result<void> settle_rseq(RestoreTask& task, const RestoreThread& thread, tracee::Registers& registers);

// When the memory is there: the kernel writes to the rseq area at once.
Result<void> restore_thread(RestoreTask& task, RestoreThread& thread, RestoreContext& context, tracee::Batch& batch);

}  // namespace ferry::state::thread_area
