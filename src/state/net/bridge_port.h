// Links as ports of a bridge.
#pragma once

#include <linux/rtnetlink.h>

#include <cstdint>
#include <optional>

#include "state/net/message.h"

namespace ferry::state::net {

// `link`: what rtnetlink(7) says of it, ifinfomsg and attributes.

// 0: it is no port.
std::uint16_t port_number(Bytes link);

// The request that sets what a bridge can be told of a port (br_setport in net/bridge/br_netlink.c), short of what
// comes about by itself: the port's state, and the cost that its speed gives.  For a link that is a port again.
std::optional<Message> port_settings(const ifinfomsg& head, Bytes link);

}  // namespace ferry::state::net
