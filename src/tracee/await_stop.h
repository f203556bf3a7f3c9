// Waiting for one kind of stop of a thread that is led on by hand.
#pragma once

#include <chrono>

#include "base/error.h"
#include "tracee/thread.h"

namespace ferry::tracee {

// Goes on, by the ptrace(2) `request`, until the thread stands at the wanted stop.  A signal that arrives meanwhile is
// sent again when the thread is let go.  Errors: os (ETIMEDOUT after five seconds), gone.
Result<void> await_stop(Thread& thread, Stop::Why why, int request);

}  // namespace ferry::tracee
