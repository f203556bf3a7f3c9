// Rings of asynchronous I/O: io_setup(2).
//
// A ring is a mapping that belongs to the kernel as much as to the program.  Its completions that were not
// fetched are kept; of requests that are still under way nothing can be seen from outside.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::aio {

// Whether a mapping is a ring.
bool is_ring(const sys::Mapping& mapping);
// Adds the ring of that mapping to the process's mm image.
Result<void> collect(DumpTask& task, const sys::Mapping& mapping);

// Makes the rings of a task where they were.  To be called when the task has all its other mappings, which
// leave the rings' places free.
Result<void> restore(RestoreTask& task);

}  // namespace ferry::state::aio
