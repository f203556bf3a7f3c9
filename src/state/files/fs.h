// Working directory, root directory and umask of a process: fs-PID.img.
#pragma once

#include "base/error.h"
#include "state/dump.h"
#include "state/file_kind.h"
#include "state/restore.h"

namespace ferry::state::fs {

Result<void> collect(DumpTask& task, DumpContext& context);
// To be run while the skeleton still has `controller_pidfd`.
Result<void> restore(RestoreTask& task, RestoreContext& context, tracee::Batch& batch);

}  // namespace ferry::state::fs
