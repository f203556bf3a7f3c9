#include "tracee/await_stop.h"

namespace ferry::tracee {
namespace {

constexpr std::chrono::seconds kPatience{5};

}  // namespace

Result<void> await_stop(Thread& thread, Stop::Why why, int request) {
  const Deadline deadline(kPatience);
  for (;;) {
    FERRY_TRY(const Stop stop, thread.wait(deadline));
    if (stop.why == why) {
      return {};
    }
    if (stop.why == Stop::Why::signal) {
      thread.deferred_signals.push_back(stop.signal);
    }
    FERRY_CHECK(thread.resume(request));
  }
}

}  // namespace ferry::tracee
