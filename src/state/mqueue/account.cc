#include "state/mqueue/account.h"

#include <sys/resource.h>

namespace ferry::state::mqueue {

Result<void> raise_limit() {
  rlimit limit{RLIM_INFINITY, RLIM_INFINITY};
  if (::setrlimit(RLIMIT_MSGQUEUE, &limit) == 0) {
    return {};
  }
  if (::getrlimit(RLIMIT_MSGQUEUE, &limit) != 0) {
    return sys_fail("getrlimit(RLIMIT_MSGQUEUE)");
  }
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_MSGQUEUE, &limit) != 0) {
    return sys_fail("setrlimit(RLIMIT_MSGQUEUE)");
  }
  return {};
}

}  // namespace ferry::state::mqueue
