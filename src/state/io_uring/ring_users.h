// Rings that no descriptor shows: made with IORING_SETUP_REGISTERED_FD_ONLY, or closed while a thread still has them
// registered (IORING_REGISTER_RING_FDS).  Neither procfs nor a system call tells of them.
#pragma once

#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "sys/btf.h"

namespace ferry::state::io_uring {

// Before the freeze: whether a thread of these processes, of which none has a descriptor of a ring, uses one all the
// same; one that was closed a moment ago is waited for, for up to two seconds.  Errors: unsupported, by process.  A
// kernel that does not show it to us is believed to have none.
Result<void> check_hidden(const std::vector<HostPid>& tree, const sys::Btf& btf);

}  // namespace ferry::state::io_uring
