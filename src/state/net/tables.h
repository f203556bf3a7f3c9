// Addresses, routes, rules, next hops, neighbours and forwarding databases: what rtnetlink(7) says of them, kept as it
// says it.
#pragma once

#include <string>

#include "base/error.h"
#include "image/proto/net.pb.h"
#include "image/set.h"

namespace ferry::state::net {

// Everything in this header is to be run inside the network namespace.

// ifaddr, route, route6 and rule of that namespace, in the words of `ip … save`; the others in `out`.
Result<void> save_tables(image::Set& set, std::uint32_t id, pb::NetnsEntry& out);

// When the links are there and up.  What the kernel has made by itself and the set does not have goes away.
Result<void> restore_addresses(const image::Set& set, std::uint32_t id);
Result<void> restore_routes(const image::Set& set, std::uint32_t id, const pb::NetnsEntry& entry);

}  // namespace ferry::state::net
