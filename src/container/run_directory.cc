#include "container/run_directory.h"

#include <sys/stat.h>

#include <cerrno>

namespace ferry::container {

Result<void> make_run_directory() {
  if (::mkdir(kRunDirectory, 0700) != 0 && errno != EEXIST) {
    return sys_fail(fmt::format("mkdir({})", kRunDirectory));
  }
  return {};
}

}  // namespace ferry::container
