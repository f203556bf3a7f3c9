#include "state/socket/more_options.h"

#include <fcntl.h>
#include <linux/in6.h>
#include <linux/netlink.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <span>

#include "base/unique_fd.h"
#include "state/socket/options.h"
#include "sys/net_namespace.h"

namespace ferry::state::socket {
namespace {

enum When : unsigned {
  kLate = 0,
  kEarly = 1,        // before bind(2)
  kUnconnected = 2,  // of a connection it shows what the kernel made of it, or cannot be set
  kEarlyUnconnected = 3,
  kNoStream = 4,  // of a TCP socket it shows what the peer's packets were like, and cannot be set
};

struct Option {
  int level, name;
  const char* text;
  unsigned when = kLate;
};

// Numbers where Debian 12's headers have no name; the kernel's include/uapi has.
constexpr Option kSocket[] = {
    {SOL_SOCKET, SO_DEBUG, "SO_DEBUG"},
    {SOL_SOCKET, SO_TIMESTAMP, "SO_TIMESTAMP"},
    {SOL_SOCKET, SO_TIMESTAMPNS, "SO_TIMESTAMPNS"},
    {SOL_SOCKET, 37, "SO_TIMESTAMPING"},
    {SOL_SOCKET, 63, "SO_TIMESTAMP_NEW"},
    {SOL_SOCKET, 64, "SO_TIMESTAMPNS_NEW"},
    {SOL_SOCKET, 65, "SO_TIMESTAMPING_NEW"},
    {SOL_SOCKET, SO_RXQ_OVFL, "SO_RXQ_OVFL"},
    {SOL_SOCKET, SO_WIFI_STATUS, "SO_WIFI_STATUS"},
    {SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF"},
    {SOL_SOCKET, SO_NOFCS, "SO_NOFCS"},
    {SOL_SOCKET, SO_SELECT_ERR_QUEUE, "SO_SELECT_ERR_QUEUE"},
    {SOL_SOCKET, SO_BUSY_POLL, "SO_BUSY_POLL"},
    {SOL_SOCKET, 69, "SO_PREFER_BUSY_POLL"},
    {SOL_SOCKET, SO_MAX_PACING_RATE, "SO_MAX_PACING_RATE"},
    {SOL_SOCKET, SO_INCOMING_CPU, "SO_INCOMING_CPU", kUnconnected},
    {SOL_SOCKET, SO_ZEROCOPY, "SO_ZEROCOPY"},
    {SOL_SOCKET, 61, "SO_TXTIME"},
    {SOL_SOCKET, 73, "SO_RESERVE_MEM"},
    {SOL_SOCKET, 74, "SO_TXREHASH", kUnconnected},
    {SOL_SOCKET, 75, "SO_RCVMARK"},
    {SOL_SOCKET, 76, "SO_PASSPIDFD"},
    {SOL_SOCKET, 82, "SO_RCVPRIORITY"},
};
constexpr Option kIp[] = {
    {IPPROTO_IP, IP_OPTIONS, "IP_OPTIONS"},
    {IPPROTO_IP, IP_RECVOPTS, "IP_RECVOPTS"},
    {IPPROTO_IP, IP_RETOPTS, "IP_RETOPTS"},
    {IPPROTO_IP, IP_MTU_DISCOVER, "IP_MTU_DISCOVER"},
    {IPPROTO_IP, IP_RECVERR, "IP_RECVERR"},
    {IPPROTO_IP, IP_RECVTTL, "IP_RECVTTL"},
    {IPPROTO_IP, IP_RECVTOS, "IP_RECVTOS"},
    {IPPROTO_IP, IP_PASSSEC, "IP_PASSSEC"},
    {IPPROTO_IP, IP_TRANSPARENT, "IP_TRANSPARENT", kEarly},
    {IPPROTO_IP, IP_RECVORIGDSTADDR, "IP_RECVORIGDSTADDR"},
    {IPPROTO_IP, IP_MINTTL, "IP_MINTTL"},
    {IPPROTO_IP, IP_CHECKSUM, "IP_CHECKSUM"},
    {IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT", kEarlyUnconnected},
    {IPPROTO_IP, IP_RECVFRAGSIZE, "IP_RECVFRAGSIZE"},
    {IPPROTO_IP, 26, "IP_RECVERR_RFC4884"},
    {IPPROTO_IP, IP_MULTICAST_IF, "IP_MULTICAST_IF", kNoStream},
    {IPPROTO_IP, IP_MULTICAST_TTL, "IP_MULTICAST_TTL", kNoStream},
    {IPPROTO_IP, IP_MULTICAST_LOOP, "IP_MULTICAST_LOOP"},
    {IPPROTO_IP, IP_MULTICAST_ALL, "IP_MULTICAST_ALL"},
    {IPPROTO_IP, IP_UNICAST_IF, "IP_UNICAST_IF"},
    {IPPROTO_IP, 51, "IP_LOCAL_PORT_RANGE", kEarly},
};
constexpr Option kIpv6[] = {
    {IPPROTO_IPV6, 33, "IPV6_FLOWINFO_SEND"},
    {IPPROTO_IPV6, IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS"},
    {IPPROTO_IPV6, IPV6_MULTICAST_IF, "IPV6_MULTICAST_IF", kNoStream},
    {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, "IPV6_MULTICAST_HOPS", kNoStream},
    {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, "IPV6_MULTICAST_LOOP"},
    {IPPROTO_IPV6, 29, "IPV6_MULTICAST_ALL"},
    {IPPROTO_IPV6, IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER"},
    {IPPROTO_IPV6, IPV6_RECVERR, "IPV6_RECVERR"},
    {IPPROTO_IPV6, 31, "IPV6_RECVERR_RFC4884"},
    {IPPROTO_IPV6, IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO"},
    {IPPROTO_IPV6, IPV6_2292PKTINFO, "IPV6_2292PKTINFO"},
    {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT"},
    {IPPROTO_IPV6, IPV6_2292HOPLIMIT, "IPV6_2292HOPLIMIT"},
    {IPPROTO_IPV6, IPV6_RECVHOPOPTS, "IPV6_RECVHOPOPTS"},
    {IPPROTO_IPV6, IPV6_RECVRTHDR, "IPV6_RECVRTHDR"},
    {IPPROTO_IPV6, IPV6_RECVDSTOPTS, "IPV6_RECVDSTOPTS"},
    {IPPROTO_IPV6, IPV6_RECVPATHMTU, "IPV6_RECVPATHMTU"},
    {IPPROTO_IPV6, IPV6_HOPOPTS, "IPV6_HOPOPTS"},
    {IPPROTO_IPV6, IPV6_RTHDRDSTOPTS, "IPV6_RTHDRDSTOPTS"},
    {IPPROTO_IPV6, IPV6_RTHDR, "IPV6_RTHDR"},
    {IPPROTO_IPV6, IPV6_DSTOPTS, "IPV6_DSTOPTS"},
    {IPPROTO_IPV6, IPV6_RECVTCLASS, "IPV6_RECVTCLASS"},
    {IPPROTO_IPV6, IPV6_TCLASS, "IPV6_TCLASS"},
    {IPPROTO_IPV6, IPV6_DONTFRAG, "IPV6_DONTFRAG"},
    {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, "IPV6_AUTOFLOWLABEL"},
    {IPPROTO_IPV6, IPV6_ADDR_PREFERENCES, "IPV6_ADDR_PREFERENCES"},
    {IPPROTO_IPV6, IPV6_MINHOPCOUNT, "IPV6_MINHOPCOUNT"},
    {IPPROTO_IPV6, IPV6_ORIGDSTADDR, "IPV6_RECVORIGDSTADDR"},
    {IPPROTO_IPV6, IPV6_TRANSPARENT, "IPV6_TRANSPARENT", kEarly},
    {IPPROTO_IPV6, IPV6_UNICAST_IF, "IPV6_UNICAST_IF"},
    {IPPROTO_IPV6, IPV6_RECVFRAGSIZE, "IPV6_RECVFRAGSIZE"},
    {IPPROTO_IPV6, IPV6_FREEBIND, "IPV6_FREEBIND", kEarly},
};
constexpr Option kTcp[] = {
    {IPPROTO_TCP, TCP_MAXSEG, "TCP_MAXSEG", kUnconnected},
    {IPPROTO_TCP, TCP_SYNCNT, "TCP_SYNCNT"},
    {IPPROTO_TCP, TCP_LINGER2, "TCP_LINGER2"},
    {IPPROTO_TCP, TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT", kUnconnected},
    {IPPROTO_TCP, TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP", kUnconnected},
    {IPPROTO_TCP, TCP_CONGESTION, "TCP_CONGESTION"},
    {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, "TCP_THIN_LINEAR_TIMEOUTS"},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT"},
    {IPPROTO_TCP, TCP_FASTOPEN, "TCP_FASTOPEN", kUnconnected},
    {IPPROTO_TCP, TCP_FASTOPEN_CONNECT, "TCP_FASTOPEN_CONNECT", kUnconnected},
    {IPPROTO_TCP, TCP_FASTOPEN_KEY, "TCP_FASTOPEN_KEY", kUnconnected},
    {IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, "TCP_FASTOPEN_NO_COOKIE"},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT"},
    {IPPROTO_TCP, TCP_SAVE_SYN, "TCP_SAVE_SYN", kUnconnected},
    {IPPROTO_TCP, TCP_INQ, "TCP_INQ"},
    {IPPROTO_TCP, TCP_TX_DELAY, "TCP_TX_DELAY"},
    {IPPROTO_TCP, 44, "TCP_RTO_MAX_MS"},
    {IPPROTO_TCP, 45, "TCP_RTO_MIN_US"},
    {IPPROTO_TCP, 46, "TCP_DELACK_MAX_US"},
};
constexpr Option kUdp[] = {
    {IPPROTO_UDP, UDP_ENCAP, "UDP_ENCAP"},
    {IPPROTO_UDP, UDP_NO_CHECK6_TX, "UDP_NO_CHECK6_TX"},
    {IPPROTO_UDP, UDP_NO_CHECK6_RX, "UDP_NO_CHECK6_RX"},
    {IPPROTO_UDP, UDP_SEGMENT, "UDP_SEGMENT"},
    {IPPROTO_UDP, UDP_GRO, "UDP_GRO"},
    {IPPROTO_UDP, UDP_CORK, "UDP_CORK"},
};
constexpr Option kUdpLite[] = {
    {IPPROTO_UDPLITE, 10, "UDPLITE_SEND_CSCOV"},
    {IPPROTO_UDPLITE, 11, "UDPLITE_RECV_CSCOV"},
};
constexpr Option kRaw6[] = {
    {SOL_RAW, IPV6_CHECKSUM, "IPV6_CHECKSUM"},
    {IPPROTO_IPV6, 36, "IPV6_HDRINCL"},
};
constexpr Option kNetlink[] = {
    {SOL_NETLINK, NETLINK_PKTINFO, "NETLINK_PKTINFO"},
    {SOL_NETLINK, NETLINK_BROADCAST_ERROR, "NETLINK_BROADCAST_ERROR"},
    {SOL_NETLINK, NETLINK_NO_ENOBUFS, "NETLINK_NO_ENOBUFS"},
    {SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, "NETLINK_LISTEN_ALL_NSID"},
    {SOL_NETLINK, NETLINK_CAP_ACK, "NETLINK_CAP_ACK"},
    {SOL_NETLINK, NETLINK_EXT_ACK, "NETLINK_EXT_ACK"},
    {SOL_NETLINK, NETLINK_GET_STRICT_CHK, "NETLINK_GET_STRICT_CHK"},
};

constexpr Option kPacket[] = {
    {SOL_PACKET, 19, "PACKET_TX_HAS_OFF"},
    {SOL_PACKET, 20, "PACKET_QDISC_BYPASS"},
    {SOL_PACKET, 23, "PACKET_IGNORE_OUTGOING"},
    {SOL_PACKET, 24, "PACKET_VNET_HDR_SZ"},
};

constexpr std::size_t kMostBytes = 256;  // IPv6 extension headers; the others are far smaller
constexpr int kMptcp = 262;              // IPPROTO_MPTCP

std::vector<std::span<const Option>> tables(int family, int type, int protocol) {
  std::vector<std::span<const Option>> out{kSocket};
  if (family == AF_INET || family == AF_INET6) {
    out.emplace_back(kIp);
  }
  if (family == AF_INET6) {
    out.emplace_back(kIpv6);
    if (type == SOCK_RAW) {
      out.emplace_back(kRaw6);
    }
  }
  if (protocol == IPPROTO_TCP || protocol == kMptcp) {
    out.emplace_back(kTcp);
  }
  if (type == SOCK_DGRAM && (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE)) {
    out.emplace_back(kUdp);
  }
  if (protocol == IPPROTO_UDPLITE) {
    out.emplace_back(kUdpLite);
  }
  if (family == AF_NETLINK) {
    out = {kSocket, kNetlink};
  }
  if (family == AF_PACKET) {
    out = {kSocket, kPacket};
  }
  return out;
}

// Empty: there is no such option for the socket, or it has no value.
std::string value_of(int fd, const Option& option) {
  char bytes[kMostBytes];
  socklen_t size = sizeof bytes;
  if (::getsockopt(fd, option.level, option.name, bytes, &size) != 0) {
    return {};
  }
  return {bytes, std::min<std::size_t>(size, sizeof bytes)};
}

const Option* find(int level, int name) {
  for (const std::span<const Option> table :
       {std::span<const Option>(kSocket), std::span<const Option>(kIp), std::span<const Option>(kIpv6),
        std::span<const Option>(kTcp), std::span<const Option>(kUdp), std::span<const Option>(kUdpLite),
        std::span<const Option>(kRaw6), std::span<const Option>(kNetlink), std::span<const Option>(kPacket)}) {
    for (const Option& o : table) {
      if (o.level == level && o.name == name) {
        return &o;
      }
    }
  }
  return nullptr;
}

}  // namespace

Result<MoreOptionsReader::Sort> MoreOptionsReader::sort_of(int fd, const Networks::Place& network) {
  FERRY_TRY(const int family, get_int(fd, SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN"));
  FERRY_TRY(const int type, get_int(fd, SOL_SOCKET, SO_TYPE, "SO_TYPE"));
  FERRY_TRY(const int protocol, get_int(fd, SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL"));
  return Sort(network.id, family, type, protocol);
}

Result<void> MoreOptionsReader::prepare(int fd, const Networks::Place& network, const std::string& subject) {
  FERRY_TRY(const Sort sort, sort_of(fd, network));
  const auto [at, fresh] = fresh_.try_emplace(sort);
  if (!fresh) {
    return {};
  }
  const auto [id, family, type, protocol] = sort;
  FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(network.ns.get()));
  FERRY_TRY(const UniqueFd made, make(family, type, protocol).during("comparing {} with a new one", subject));
  for (const auto& table : tables(family, type, protocol)) {
    for (const Option& o : table) {
      at->second.push_back(value_of(made.get(), o));
    }
  }
  return {};
}

Result<void> MoreOptionsReader::collect(int fd, const Networks::Place& network, bool connected,
                                        MoreOptions& out) const {
  FERRY_TRY(const Sort sort, sort_of(fd, network));
  const auto [id, family, type, protocol] = sort;
  const std::vector<std::string>& fresh = fresh_.at(sort);
  std::size_t at = 0;
  for (const auto& table : tables(family, type, protocol)) {
    for (const Option& o : table) {
      const std::string& usual = fresh[at++];
      if ((connected && (o.when & kUnconnected) != 0) || (type == SOCK_STREAM && (o.when & kNoStream) != 0)) {
        continue;
      }
      std::string value = value_of(fd, o);
      if (value != usual && !value.empty()) {
        pb::FerrySocketOption& kept = *out.Add();
        kept.set_level(static_cast<std::uint32_t>(o.level));
        kept.set_name(static_cast<std::uint32_t>(o.name));
        kept.set_value(std::move(value));
      }
    }
  }
  return {};
}

Result<void> restore_more(int fd, const MoreOptions& options, bool early, const std::string& subject) {
  for (const pb::FerrySocketOption& kept : options) {
    const int level = static_cast<int>(kept.level()), name = static_cast<int>(kept.name());
    const Option* known = find(level, name);
    if (known == nullptr) {
      return fail(Kind::unsupported, "{}: the set has option {} of level {}, which this version of ferry does not know",
                  subject, name, level);
    }
    if (((known->when & kEarly) != 0) != early || value_of(fd, *known) == kept.value()) {
      continue;
    }
    if (::setsockopt(fd, level, name, kept.value().data(), static_cast<socklen_t>(kept.value().size())) != 0) {
      return sys_fail(fmt::format("setsockopt({}, {})", subject, known->text));
    }
  }
  return {};
}

}  // namespace ferry::state::socket
