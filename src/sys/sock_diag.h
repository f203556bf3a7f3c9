// What the kernel tells of sockets by inode number: sock_diag(7).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "sys/netlink.h"

namespace ferry::sys {

struct UnixDiag {
  std::uint8_t type = 0;   // SOCK_*
  std::uint8_t state = 0;  // TCP_* numbering
  std::uint32_t inode = 0;
  std::optional<std::uint32_t> peer;         // inode; 0: it has no inode (closed, or not accepted yet)
  std::vector<std::uint32_t> pending;        // of a listener: inodes of the sockets that wait for accept(2)
  std::uint32_t queue = 0, write_queue = 0;  // of a listener: waiting, and backlog
  std::uint8_t shutdown = 0;                 // bit 0: no more receiving, bit 1: no more sending
};
Result<UnixDiag> parse_unix_diag(std::span<const std::byte> payload);
// `netlink`: NETLINK_SOCK_DIAG of the socket's network namespace.
Result<UnixDiag> unix_diag(Netlink& netlink, std::uint32_t inode);
// All of the namespace by their inodes, in one walk; a single question walks over all of them as well
// (unix_diag_get_exact in net/unix/diag.c).
Result<std::map<std::uint32_t, UnixDiag>> all_unix_diags(Netlink& netlink);

// An Internet socket.
struct InetDiag {
  std::uint8_t state = 0;  // TCP_*
  std::uint32_t inode = 0;
  std::uint16_t local_port = 0, remote_port = 0;   // host order
  std::array<std::uint32_t, 4> local{}, remote{};  // network order; the first word for IPv4
};
// All of that family and protocol whose state is in the mask (1 << TCP_*).
Result<std::vector<InetDiag>> inet_diag(Netlink& netlink, std::uint8_t family, std::uint8_t protocol,
                                        std::uint32_t states);

}  // namespace ferry::sys
