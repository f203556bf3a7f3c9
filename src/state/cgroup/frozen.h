// A tree that its user keeps frozen.  Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst,
// cgroup-v2.rst (cgroup.freeze).
#pragma once

#include <string>

#include "base/error.h"
#include "base/ids.h"
#include "state/dump_host.h"

namespace ferry::state::cgroup {

// The directory of the group by which a process is frozen: its own, or one above it; empty if it is not.
// A frozen process stops for a tracer only once it is thawed, so a checkpoint has to know.
Result<std::string> frozen_group(DumpHost& host, HostPid pid);

}  // namespace ferry::state::cgroup
