// Kernel parameters of a network namespace.  Source: Documentation/networking/ip-sysctl.rst.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "image/proto/net.pb.h"

namespace ferry::state::net {

// `sysctl`: /proc/sys/net as our side has it; what it shows is the reader's own namespace.  All of this is to be
// run inside.

// conf/all and conf/default, and everything else that can be written.
Result<void> save_sysctls(int sysctl, pb::NetnsEntry& out);
// conf/NAME of one interface.
Result<void> save_sysctls_of(int sysctl, pb::NetDeviceEntry& device);

// Before interfaces are made: these inherit what default says.  `weak`: what this kernel does not have is left
// out instead of refused (--weak-sysctls).
Result<void> restore_sysctls(int sysctl, const pb::NetnsEntry& entry, bool weak);
Result<void> restore_sysctls_of(int sysctl, const pb::NetDeviceEntry& device, bool weak);

// While addresses come back nobody is asked whether somebody else has them, and none are made up.
Result<void> switch_off_detection(int sysctl, const std::vector<const pb::NetDeviceEntry*>& devices);

// How the interface makes up its addresses, from now on.
Result<void> restore_generation(const pb::NetDeviceEntry& device);

}  // namespace ferry::state::net
