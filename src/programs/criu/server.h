// What the commands that serve others share: going into the background, and saying that they are ready.
#pragma once

#include "base/error.h"
#include "base/unique_fd.h"
#include "programs/criu/settings.h"
#include "programs/criu/workplace.h"

namespace ferry::criu {

class Readiness {
 public:
  // Goes on in a child without a terminal.  False in the caller's own process, which is to end: the child has said
  // that it is ready.  Errors: os (it ended before that).
  Result<bool> go_on_in_background();
  // Pid file, action scripts, status descriptor, and whoever waits for a child in the background.
  Result<void> tell(const Settings& settings, const Workplace& place);

 private:
  UniqueFd waiting_;  // of the process that was called
};

}  // namespace ferry::criu
