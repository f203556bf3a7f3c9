// Packet filters: nftables-NS.img, iptables-NS.img and ip6tables-NS.img, as nft(8) and iptables-save(8) write
// them, and the table of connections, netns-ct-NS.img.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "image/set.h"
#include "state/inside.h"

namespace ferry::state::net {

// A listing without what only locked the network while a checkpoint ran.
std::string without_lock_tables(std::string_view rules);
std::string without_lock_chain(std::string_view rules);

// `ns`: a descriptor of the namespace, for the programs; `inside` is in it.
// Errors: gone, if there are rules and the program that reads them is not installed.
Result<void> save_firewall(image::Set& set, std::uint32_t id, int ns, Inside& inside);
Result<void> restore_firewall(const image::Set& set, std::uint32_t id, int ns);

// Both inside.
Result<void> save_connections(image::Set& set, std::uint32_t id);
Result<void> restore_connections(const image::Set& set, std::uint32_t id);

}  // namespace ferry::state::net
