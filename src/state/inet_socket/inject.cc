#include "state/inet_socket/inject.h"

#include <arpa/inet.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <sys/socket.h>

#include <cstring>
#include <vector>

#include "state/network_lock/network_lock.h"
#include "state/socket/options.h"

namespace ferry::state::inet_socket {
namespace {

constexpr std::size_t kMostPayload = 65535 - 60;
constexpr std::uint8_t kHops = 64;

std::string bytes_of(const auto& header) { return {reinterpret_cast<const char*>(&header), sizeof header}; }

// RFC 1071
std::uint16_t checksum(const std::string& bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    const auto high = static_cast<unsigned char>(bytes[i]);
    const auto low = i + 1 < bytes.size() ? static_cast<unsigned char>(bytes[i + 1]) : 0U;
    sum += static_cast<std::uint32_t>(high << 8 | low);
  }
  while (sum >> 16 != 0) {
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return static_cast<std::uint16_t>(~sum);
}

std::string address_bytes(const Endpoint& e) {
  return {reinterpret_cast<const char*>(e.words.data()), e.words.size() * sizeof e.words[0]};
}

// The header that both checksums cover in place of the IP header (RFC 793, RFC 8200 8.1).
std::string pseudo_header(const Endpoint& from, const Endpoint& to, std::uint8_t protocol, std::size_t size) {
  std::string out = address_bytes(from) + address_bytes(to);
  const std::uint32_t length = htonl(static_cast<std::uint32_t>(size));
  return out + bytes_of(length) + std::string(3, '\0') + static_cast<char>(protocol);
}

Result<std::string> ip_packet(const Endpoint& from, const Endpoint& to, std::uint8_t protocol,
                              const std::string& content) {
  if (from.family != to.family || content.size() > kMostPayload) {
    return fail(Kind::corrupt, "no packet can be made from {} to {} with {} bytes", from.text(), to.text(),
                content.size());
  }
  if (from.family == AF_INET) {
    iphdr ip{};
    ip.version = 4;
    ip.ihl = sizeof ip / 4;
    ip.tot_len = htons(static_cast<std::uint16_t>(sizeof ip + content.size()));
    ip.ttl = kHops;
    ip.protocol = protocol;
    ip.saddr = from.words[0];
    ip.daddr = to.words[0];
    return bytes_of(ip) + content;  // the kernel fills the checksum in
  }
  ip6_hdr ip{};
  ip.ip6_vfc = 6 << 4;
  ip.ip6_plen = htons(static_cast<std::uint16_t>(content.size()));
  ip.ip6_nxt = protocol;
  ip.ip6_hlim = kHops;
  std::memcpy(&ip.ip6_src, from.words.data(), sizeof ip.ip6_src);
  std::memcpy(&ip.ip6_dst, to.words.data(), sizeof ip.ip6_dst);
  return bytes_of(ip) + content;
}

}  // namespace

Endpoint on_the_wire(const Endpoint& e) {
  const bool mapped =
      e.family == AF_INET6 && e.words.size() == 4 && e.words[0] == 0 && e.words[1] == 0 && e.words[2] == htonl(0xffff);
  return mapped ? Endpoint(AF_INET, e.port, {e.words[3]}, 0) : e;
}

Result<std::string> tcp_packet(const Endpoint& from, const Endpoint& to, const Segment& segment) {
  tcphdr tcp{};
  tcp.source = htons(from.port);
  tcp.dest = htons(to.port);
  tcp.seq = htonl(segment.sequence);
  tcp.ack_seq = htonl(segment.acknowledged);
  tcp.doff = sizeof tcp / 4;
  tcp.fin = (segment.flags & kFin) != 0;
  tcp.rst = (segment.flags & kRst) != 0;
  tcp.ack = (segment.flags & kAck) != 0;
  tcp.urg = (segment.flags & kUrg) != 0;
  tcp.window = htons(segment.window);
  tcp.urg_ptr = htons(segment.urgent);
  const std::string payload(segment.payload);
  const std::size_t size = sizeof tcp + payload.size();
  tcp.check = htons(checksum(pseudo_header(from, to, IPPROTO_TCP, size) + bytes_of(tcp) + payload));
  return ip_packet(from, to, IPPROTO_TCP, bytes_of(tcp) + payload);
}

Result<std::string> udp_packet(const Endpoint& from, const Endpoint& to, std::uint8_t protocol,
                               std::string_view payload) {
  const std::string content(payload);
  const std::size_t size = sizeof(udphdr) + content.size();
  udphdr udp{};
  udp.source = htons(from.port);
  udp.dest = htons(to.port);
  // Of UDP-Lite (RFC 3828) this is how much the checksum covers; 0: all.
  udp.len = protocol == IPPROTO_UDPLITE ? 0 : htons(static_cast<std::uint16_t>(size));
  const std::uint16_t sum = checksum(pseudo_header(from, to, protocol, size) + bytes_of(udp) + content);
  udp.check = sum == 0 ? 0xffff : htons(sum);  // 0 would say that there is none
  return ip_packet(from, to, protocol, bytes_of(udp) + content);
}

std::optional<Endpoint> destination_of(std::string_view packet) {
  if (packet.size() >= sizeof(iphdr) && static_cast<unsigned char>(packet[0]) >> 4 == 4) {
    iphdr ip{};
    std::memcpy(&ip, packet.data(), sizeof ip);
    return Endpoint(AF_INET, 0, {ip.daddr}, 0);
  }
  if (packet.size() >= sizeof(ip6_hdr) && static_cast<unsigned char>(packet[0]) >> 4 == 6) {
    Endpoint out(AF_INET6, 0, std::vector<std::uint32_t>(4), 0);
    std::memcpy(out.words.data(), packet.data() + offsetof(ip6_hdr, ip6_dst), sizeof(in6_addr));
    return out;
  }
  return std::nullopt;
}

// Only to those can be bound (ip(7)).
bool is_local(const Endpoint& endpoint) {
  const UniqueFd probe(::socket(endpoint.family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  Endpoint address = endpoint;
  address.port = 0;
  const sockaddr_storage name = address.to_sockaddr();
  const auto first = static_cast<unsigned char>(address_bytes(endpoint)[0]);
  const bool group = endpoint.family == AF_INET ? first >= 224 : first == 255;
  return probe && !group && !endpoint.is_any() &&
         ::bind(probe.get(), reinterpret_cast<const sockaddr*>(&name), address.size()) == 0;
}

Result<void> Injector::send(const std::string& packet, const Endpoint& to, Inside& inside) {
  return inside.run([&] { return send(packet, to, raw_[&inside]); });
}

Result<void> Injector::send(const std::string& packet, const Endpoint& to) { return send(packet, to, raw_[nullptr]); }

Result<void> Injector::send(const std::string& packet, const Endpoint& to, Raw& sockets) {
  UniqueFd& raw = to.family == AF_INET ? sockets.raw4 : sockets.raw6;
  if (!raw) {
    // raw(7): this protocol implies that we write the IP header.
    raw = UniqueFd(::socket(to.family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW));
    if (!raw) {
      return sys_fail("socket(SOCK_RAW)");
    }
    FERRY_CHECK(socket::set_int(raw.get(), SOL_SOCKET, SO_MARK, network_lock::kOwnMark, "SO_MARK"));
  }
  Endpoint address = to;
  address.port = 0;
  const sockaddr_storage destination = address.to_sockaddr();
  if (::sendto(raw.get(), packet.data(), packet.size(), 0, reinterpret_cast<const sockaddr*>(&destination),
               address.size()) < 0) {
    return sys_fail(fmt::format("sendto({}, a packet made for it)", to.text()));
  }
  return {};
}

}  // namespace ferry::state::inet_socket
