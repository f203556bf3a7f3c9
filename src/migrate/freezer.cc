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
  return is_v1(cgroup) ? sys::write_file(cgroup + "/freezer.state", "FROZEN")
                       : sys::write_file(cgroup + "/cgroup.freeze", "1");
}

Result<void> thaw(const std::string& cgroup) {
  return is_v1(cgroup) ? sys::write_file(cgroup + "/freezer.state", "THAWED")
                       : sys::write_file(cgroup + "/cgroup.freeze", "0");
}

Result<bool> is_frozen(const std::string& cgroup) {
  if (is_v1(cgroup)) {
    FERRY_TRY(const std::string state, sys::read_file(cgroup + "/freezer.state"));
    return !state.starts_with("THAWED");
  }
  FERRY_TRY(const std::string state, sys::read_file(cgroup + "/cgroup.freeze"));
  return state.starts_with("1");
}

Result<void> kill_frozen(const std::string& cgroup) {
  FERRY_TRY(const auto pids, members(cgroup));
  for (const HostPid pid : pids) {
    if (::kill(pid.value, SIGKILL) != 0 && errno != ESRCH) {
      return sys_fail(fmt::format("kill({}, SIGKILL)", pid));
    }
  }
  auto thawed = thaw(cgroup);
  return !thawed && thawed.error().kind == Kind::gone ? Result<void>() : std::move(thawed);
}

Result<std::vector<HostPid>> members(const std::string& cgroup) {
  std::vector<HostPid> out;
  const auto text = sys::read_file(cgroup + "/cgroup.procs");
  if (!text && text.error().kind == Kind::gone) {
    return out;
  }
  FERRY_CHECK(text);
  std::istringstream pids(*text);
  pid_t pid = 0;
  while (pids >> pid) {
    if (pid > 0) {  // those of another pid namespace are 0
      out.push_back(HostPid(pid));
    }
  }
  return out;
}

}  // namespace ferry::migrate
