// Packets for sockets of our own machine that look as if a peer had sent them.
//
// The kernel offers no call for "the peer has closed" or "this datagram came from there"; such a packet
// says it.  It is sent by a raw socket with its own IP header (raw(7), IP_HDRINCL) to one of our
// addresses, so that it goes through lo and never to a network, and carries the mark that passes a lock.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/unique_fd.h"
#include "state/inet_socket/inet_socket.h"
#include "state/inside.h"

namespace ferry::state::inet_socket {

struct Segment {
  std::uint32_t sequence = 0, acknowledged = 0;
  std::uint8_t flags = 0;  // kFin…
  std::uint16_t window = 0;
  std::uint16_t urgent = 0;
  std::string_view payload;
};
constexpr std::uint8_t kFin = 1, kRst = 4, kAck = 16, kUrg = 32;

// Whole packets, beginning with their IP header.  Both addresses are of one family.
// Errors: corrupt if there is no room for the payload.
Result<std::string> tcp_packet(const Endpoint& from, const Endpoint& to, const Segment& segment);
Result<std::string> udp_packet(const Endpoint& from, const Endpoint& to, std::uint8_t protocol,
                               std::string_view payload);
// v4-mapped addresses of IPv6 sockets as what they are on the wire; others unchanged.
Endpoint on_the_wire(const Endpoint& endpoint);

// Whom a whole packet is for; nothing if it is none of IPv4 or IPv6.
std::optional<Endpoint> destination_of(std::string_view packet);
// Whether an address, no group's, is one of the calling thread's network namespace.
bool is_local(const Endpoint& endpoint);

class Injector {
 public:
  // `to`: an address of the network namespace that `inside` is in.
  Result<void> send(const std::string& packet, const Endpoint& to, Inside& inside);
  // The same for the namespace of the calling thread.
  Result<void> send(const std::string& packet, const Endpoint& to);

 private:
  struct Raw {
    UniqueFd raw4, raw6;
  };
  static Result<void> send(const std::string& packet, const Endpoint& to, Raw& raw);
  std::map<const Inside*, Raw> raw_;  // by who is in the namespace; nullptr: the calling thread
};

}  // namespace ferry::state::inet_socket
