// An IN_Q_OVERFLOW event, made on purpose.
#pragma once

#include "base/error.h"

namespace ferry::state::inotify {

// Leaves exactly that event in the empty queue of an inotify descriptor.
Result<void> make_overflow(int fd);

}  // namespace ferry::state::inotify
