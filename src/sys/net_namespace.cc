#include "sys/net_namespace.h"

#include <sched.h>

#include <cstdlib>

#include "base/log.h"
#include "sys/file.h"

namespace ferry::sys {

Result<NetNamespaceVisit> NetNamespaceVisit::enter(int ns) {
  if (ns < 0) {
    return NetNamespaceVisit(UniqueFd());
  }
  FERRY_TRY(UniqueFd home, open("/proc/thread-self/ns/net", 0));
  if (::setns(ns, CLONE_NEWNET) != 0) {
    return sys_fail("setns(network namespace)");
  }
  return NetNamespaceVisit(std::move(home));
}

NetNamespaceVisit::~NetNamespaceVisit() {
  if (home_ && ::setns(home_.get(), CLONE_NEWNET) != 0) {
    // Whatever this thread did next would be done to somebody else's network.
    log::error(sys_fail("setns(back to our own network namespace)").error);
    std::abort();
  }
}

}  // namespace ferry::sys
