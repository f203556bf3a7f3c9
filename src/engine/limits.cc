#include "engine/limits.h"

#include <sys/resource.h>

namespace ferry::engine {

Result<void> raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return sys_fail("getrlimit(RLIMIT_NOFILE)");
  }
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return sys_fail("setrlimit(RLIMIT_NOFILE)");
  }
  return {};
}

}  // namespace ferry::engine
