// What a user's message queues may take together: getrlimit(2), RLIMIT_MSGQUEUE.
#pragma once

#include "base/error.h"

namespace ferry::state::mqueue {

// When we make a queue it is our own limit that counts, against what its owner has all over the host.  Raises it, of
// this process: wholly with CAP_SYS_RESOURCE, else as far as it goes.
Result<void> raise_limit();

}  // namespace ferry::state::mqueue
