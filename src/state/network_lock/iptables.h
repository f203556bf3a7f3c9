// The lock by rules of iptables(8).
#pragma once

#include "state/network_lock/network_lock.h"

namespace ferry::state::network_lock {

// In the network namespace of the calling thread.  `add`: or remove.
// Errors: what the programs iptables-restore and ip6tables-restore say.
Result<void> switch_iptables(const Request& request, bool add);

// The text for iptables-restore(8), or ip6tables-restore(8).
std::string iptables_text(const Request& request, bool ipv6, bool add);

}  // namespace ferry::state::network_lock
