// The sysctls of an ipc namespace.
#pragma once

#include <string>

#include "base/error.h"
#include "image/proto/ipc.pb.h"

namespace ferry::state::ipc {

// `sysctl`: /proc/sys of the host, opened.  The kernel shows there the values of the ipc namespace of the
// thread that looks, so both are for a thread that has joined it.
Result<pb::IpcVarEntry> read_limits(int sysctl);
// Writes what differs, so that what needs a capability we lack is asked for only when it matters.
Result<void> write_limits(int sysctl, const pb::IpcVarEntry& limits);

// One of them, "fs/mqueue/msg_max".
Result<std::uint64_t> read_limit(int sysctl, const std::string& file);
Result<void> write_limit(int sysctl, const std::string& file, const std::string& text);

}  // namespace ferry::state::ipc
