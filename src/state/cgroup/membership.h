// /proc/PID/cgroup, and how paths of an image become paths of this host.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "image/proto/cgroup.pb.h"
#include "state/options.h"

namespace ferry::state::cgroup {

// Hierarchy to path.  The hierarchy's name is the second field of the line: "memory", "cpu,cpuacct",
// "name=systemd", and "" for cgroup v2.  cgroups(7).
using Membership = std::map<std::string, std::string>;
Result<Membership> parse_membership(std::string_view text);

// Whether a comma-separated name has that controller.
bool names_controller(std::string_view hierarchy, std::string_view controller);

// --cgroup-root: the part of a path that all sets share in a hierarchy (or what lies outside of the cgroup
// namespace) is replaced by the path that the caller gave for it.
class Remap {
 public:
  Remap(const pb::CgroupEntry& image, const std::vector<CgroupRoot>& roots);
  [[nodiscard]] std::string path(const std::string& hierarchy, const std::string& path) const;

 private:
  struct Rule {
    std::string from, to;
  };
  std::map<std::string, Rule> rules_;  // by hierarchy of the image
};

}  // namespace ferry::state::cgroup
