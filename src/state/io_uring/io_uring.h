// Rings of io_uring_setup(2) that nothing is under way in.
//
// What a ring shows to the program, submissions that were not handed over and completions that were not fetched among
// it, is memory and goes as it is; what the kernel has beside it is read out of the kernel (ring_look.h).  A request
// that was taken cannot be given to another kernel: a ring with one is refused.
#pragma once

#include <cstdint>
#include <memory>

#include "base/error.h"
#include "state/file_kind.h"
#include "state/io_uring/ring_look.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_io_uring_kind();

namespace io_uring {

// Before the freeze: whether a descriptor of a running process is a ring, by its link, and one that can be carried.
bool is_ring(const std::string& link);
// A ring that has requests under way is looked at again for a while, until it has none.
// Errors: unsupported.
Result<void> preflight(HostPid pid, int fd, RingLook& look);

// Restore: whether a mapping is one of a ring; and makes those of a task, which has to have all others.
bool is_ring(const pb::VmaEntry& vma, const OpenFiles& files);
Result<void> restore_mappings(RestoreTask& task, RestoreContext& context);

}  // namespace io_uring
}  // namespace ferry::state
