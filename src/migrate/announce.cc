#include "migrate/announce.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

using Mac = std::array<std::uint8_t, ETH_ALEN>;

struct Announcement {  // Ethernet ARP, RFC 826
  std::uint16_t hardware = htons(ARPHRD_ETHER);
  std::uint16_t protocol = htons(ETH_P_IP);
  std::uint8_t hardware_size = ETH_ALEN;
  std::uint8_t protocol_size = sizeof(in_addr);
  std::uint16_t operation = htons(ARPOP_REQUEST);
  Mac sender_mac{};
  std::array<std::uint8_t, 4> sender_ip{};
  Mac target_mac{};
  std::array<std::uint8_t, 4> target_ip{};
};
static_assert(sizeof(Announcement) == 28);

struct Advertisement {  // RFC 4861, section 4.4, with the option of 4.6.1; the kernel fills the checksum in
  std::uint8_t type = ND_NEIGHBOR_ADVERT;
  std::uint8_t code = 0;
  std::uint16_t checksum = 0;
  std::uint32_t flags = ND_NA_FLAG_OVERRIDE;
  in6_addr target{};
  std::uint8_t option = ND_OPT_TARGET_LINKADDR;
  std::uint8_t option_length = 1;  // in units of eight bytes
  Mac mac{};
};
static_assert(sizeof(Advertisement) == 32);

struct Address {
  int interface = 0;
  Mac mac{};
  in_addr ip{};
  in6_addr ip6{};
  bool is_ip6 = false;
};

struct FreeList {
  void operator()(ifaddrs* list) const { ::freeifaddrs(list); }
};

Result<std::vector<Address>> addresses() {
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) {
    return sys_fail("getifaddrs");
  }
  const std::unique_ptr<ifaddrs, FreeList> list(raw);
  std::map<std::string, std::pair<int, Mac>> links;
  for (const ifaddrs* at = list.get(); at != nullptr; at = at->ifa_next) {
    if (at->ifa_addr != nullptr && at->ifa_addr->sa_family == AF_PACKET && (at->ifa_flags & IFF_UP) != 0) {
      sockaddr_ll link{};
      std::memcpy(&link, at->ifa_addr, sizeof link);
      if (link.sll_hatype == ARPHRD_ETHER && link.sll_halen == ETH_ALEN) {
        Mac mac{};
        std::memcpy(mac.data(), link.sll_addr, mac.size());
        links[at->ifa_name] = {link.sll_ifindex, mac};
      }
    }
  }
  std::vector<Address> out;
  for (const ifaddrs* at = list.get(); at != nullptr; at = at->ifa_next) {
    const auto link = links.find(at->ifa_name);
    if (at->ifa_addr == nullptr || link == links.end()) {
      continue;
    }
    Address one;
    one.interface = link->second.first;
    one.mac = link->second.second;
    one.is_ip6 = at->ifa_addr->sa_family == AF_INET6;
    if (one.is_ip6) {
      sockaddr_in6 address{};
      std::memcpy(&address, at->ifa_addr, sizeof address);
      one.ip6 = address.sin6_addr;
    } else if (at->ifa_addr->sa_family == AF_INET) {
      sockaddr_in address{};
      std::memcpy(&address, at->ifa_addr, sizeof address);
      one.ip = address.sin_addr;
    } else {
      continue;
    }
    out.push_back(one);
  }
  return out;
}

// To all nodes, as RFC 4861 has it for an address that has moved (section 7.2.6).
Result<void> advertise(const Address& address) {
  const UniqueFd socket(::socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMPV6));
  const int farthest = 255;  // anything less has been forwarded, and is not believed
  if (!socket || ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &farthest, sizeof farthest) != 0) {
    return sys_fail("socket(ICMPv6)");
  }
  Advertisement packet;
  packet.target = address.ip6;
  packet.mac = address.mac;
  sockaddr_in6 to{};
  to.sin6_family = AF_INET6;
  to.sin6_scope_id = static_cast<std::uint32_t>(address.interface);
  ::inet_pton(AF_INET6, "ff02::1", &to.sin6_addr);
  if (::sendto(socket.get(), &packet, sizeof packet, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to) < 0 &&
      errno != EADDRNOTAVAIL && errno != ENETUNREACH) {  // no address is ready; the kernel asks about each one itself
    return sys_fail("sendto(neighbour advertisement)");
  }
  return {};
}

Result<int> announce_here() {
  FERRY_TRY(const auto list, addresses());
  const UniqueFd socket(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_ARP)));
  if (!socket) {
    return sys_fail("socket(AF_PACKET)");
  }
  for (const Address& address : list) {
    if (address.is_ip6) {
      FERRY_CHECK(advertise(address));
      continue;
    }
    Announcement packet;
    packet.sender_mac = address.mac;
    std::memcpy(packet.sender_ip.data(), &address.ip, packet.sender_ip.size());
    packet.target_ip = packet.sender_ip;
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_protocol = htons(ETH_P_ARP);
    to.sll_ifindex = address.interface;
    to.sll_halen = ETH_ALEN;
    std::memset(to.sll_addr, 0xff, ETH_ALEN);
    if (::sendto(socket.get(), &packet, sizeof packet, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to) < 0) {
      return sys_fail("sendto(ARP announcement)");
    }
  }
  return static_cast<int>(list.size());
}

}  // namespace

Result<int> announce_addresses(HostPid pid) {
  FERRY_TRY(const UniqueFd space, sys::open(fmt::format("/proc/{}/ns/net", pid), O_RDONLY));
  // A network namespace belongs to the thread (setns(2)), so one of its own goes there.
  Result<int> sent = 0;
  std::thread([&] {
    if (::setns(space.get(), CLONE_NEWNET) != 0) {
      sent = sys_fail(fmt::format("setns(network of pid {})", pid));
    } else {
      sent = announce_here();
    }
  }).join();
  return sent;
}

}  // namespace ferry::migrate
