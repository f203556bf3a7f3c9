#include "migrate/freezer.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>

#include "sys/file.h"

namespace ferry::migrate {
namespace {

bool is_v1(const std::string& cgroup) { return ::access((cgroup + "/freezer.state").c_str(), F_OK) == 0; }

}  // namespace

Result<void> freeze(const std::string& cgroup) {
  return is_v1(cgroup) ? sys::write_file(cgroup + "/freezer.state", "FROZEN") : sys::write_file(cgroup + "/cgroup.freeze", "1");
}

Result<void> thaw(const std::string& cgroup) {
  return is_v1(cgroup) ? sys::write_file(cgroup + "/freezer.state", "THAWED") : sys::write_file(cgroup + "/cgroup.freeze", "0");
}

Result<void> kill_frozen(const std::string& cgroup) {
  FERRY_TRY(const std::string text, sys::read_file(cgroup + "/cgroup.procs"));
  std::istringstream pids(text);
  pid_t pid = 0;
  while (pids >> pid) {
    if (pid > 0 && ::kill(pid, SIGKILL) != 0 && errno != ESRCH) {
      return sys_fail(fmt::format("kill({}, SIGKILL)", pid));
    }
  }
  return thaw(cgroup);
}

}  // namespace ferry::migrate
