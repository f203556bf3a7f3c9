// Holding a container still without being its tracer: what a move in doubt does to the source.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::migrate {

// `cgroup` is the directory of a freezer, v1 or v2 (Documentation/admin-guide/cgroup-v1/
// freezer-subsystem.rst; cgroup-v2.rst, cgroup.freeze).  Processes that are stopped by ptrace freeze
// when they are let go.
Result<void> freeze(const std::string& cgroup);
Result<void> thaw(const std::string& cgroup);
// Whether somebody holds it: docker pause does.
Result<bool> is_frozen(const std::string& cgroup);
// Kills every process of a frozen cgroup and lets it go: a v1 freezer holds even the dying, so the
// signal is sent first and nothing runs in between.
Result<void> kill_frozen(const std::string& cgroup);
// The processes in it.  None if it is gone.
Result<std::vector<HostPid>> members(const std::string& cgroup);

}  // namespace ferry::migrate
