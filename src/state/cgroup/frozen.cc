#include "state/cgroup/frozen.h"

#include "state/cgroup/membership.h"
#include "sys/file.h"

namespace ferry::state::cgroup {

Result<std::string> frozen_group(DumpHost& host, HostPid pid) {
  FERRY_TRY(const std::string text, sys::read_file(fmt::format("/proc/{}/cgroup", pid)));
  FERRY_TRY(const Membership membership, parse_membership(text));
  for (const auto& [name, path] : membership) {
    const bool v2 = name.empty();
    if ((!v2 && !names_controller(name, "freezer")) || path == "/") {
      continue;
    }
    FERRY_TRY(const Hierarchy* hierarchy, host.hierarchy(name));
    // Which of them it was is said by the group that was told to freeze, not by those below it.
    const char* file = v2 ? "cgroup.freeze" : "freezer.self_freezing";
    for (std::string group = path; !group.empty(); group.resize(group.rfind('/'))) {
      const std::string directory = hierarchy->directory(group);
      const auto told = sys::read_file(directory + "/" + file);
      if (told.has_value() && told->starts_with('1')) {
        return directory;
      }
    }
  }
  return std::string();
}

}  // namespace ferry::state::cgroup
