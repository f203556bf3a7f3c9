// Telling the neighbours of a network namespace where its addresses are now.
#pragma once

#include "base/error.h"
#include "base/ids.h"

namespace ferry::migrate {

// Sends an ARP announcement (RFC 5227, section 2.3) for every IPv4 address, and an unsolicited neighbour
// advertisement (RFC 4861, section 7.2.6) for every IPv6 address, of every Ethernet interface in the network
// namespace of `pid`.  Switches learn the port from it, neighbours the MAC address.
// The value is the number of addresses.
Result<int> announce_addresses(HostPid pid);

}  // namespace ferry::migrate
