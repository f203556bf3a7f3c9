#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

struct Bound {
  int fd = -1;
  sockaddr_storage address{};
  [[nodiscard]] socklen_t size() const {
    return address.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  }
  [[nodiscard]] const sockaddr* name() const { return reinterpret_cast<const sockaddr*>(&address); }
};

Bound bound(int family, int protocol = 0, bool any = false) {
  Bound out;
  out.address.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET && !any) {
    reinterpret_cast<sockaddr_in&>(out.address).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  } else if (family == AF_INET6 && !any) {
    reinterpret_cast<sockaddr_in6&>(out.address).sin6_addr = in6addr_loopback;
  }
  out.fd = ::socket(family, SOCK_DGRAM, protocol);
  EXPECT_EQ(::bind(out.fd, out.name(), out.size()), 0) << std::strerror(errno);
  socklen_t size = sizeof out.address;
  EXPECT_EQ(::getsockname(out.fd, reinterpret_cast<sockaddr*>(&out.address), &size), 0);
  return out;
}

bool await_input(int fd) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, 5000) == 1;
}

std::string port_text(const sockaddr_storage& a) {
  return std::to_string(ntohs(a.ss_family == AF_INET ? reinterpret_cast<const sockaddr_in&>(a).sin_port
                                                     : reinterpret_cast<const sockaddr_in6&>(a).sin6_port));
}

// "text from port 1234"
std::string receive(int fd) {
  char room[70000];
  sockaddr_storage from{};
  socklen_t size = sizeof from;
  const ssize_t n = ::recvfrom(fd, room, sizeof room, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &size);
  return n < 0 ? std::strerror(errno)
               : std::string(room, static_cast<std::size_t>(n)) + " from port " + port_text(from);
}

void keeps_queued_datagrams(int family, int protocol, bool any) {
  const Bound to = bound(family, protocol, any), a = bound(family, protocol), b = bound(family, protocol);
  Bound target = a;  // its address with the port of `to`
  if (family == AF_INET) {
    reinterpret_cast<sockaddr_in&>(target.address).sin_port = reinterpret_cast<const sockaddr_in&>(to.address).sin_port;
  } else {
    reinterpret_cast<sockaddr_in6&>(target.address).sin6_port =
        reinterpret_cast<const sockaddr_in6&>(to.address).sin6_port;
  }
  const std::string large(30'000, 'x');
  ASSERT_EQ(::sendto(a.fd, "one", 3, 0, target.name(), target.size()), 3) << std::strerror(errno);
  ASSERT_EQ(::sendto(b.fd, "", 0, 0, target.name(), target.size()), 0);
  ASSERT_EQ(::sendto(b.fd, large.data(), large.size(), 0, target.name(), target.size()),
            static_cast<ssize_t>(large.size()));
  ASSERT_TRUE(await_input(to.fd));
  checkpoint_here();
  EXPECT_EQ(receive(to.fd), "one from port " + port_text(a.address));
  EXPECT_EQ(receive(to.fd), " from port " + port_text(b.address));
  EXPECT_EQ(receive(to.fd), large + " from port " + port_text(b.address));
  EXPECT_EQ(receive(to.fd), "Resource temporarily unavailable");
  ASSERT_EQ(::sendto(a.fd, "later", 5, 0, target.name(), target.size()), 5);
  ASSERT_TRUE(await_input(to.fd));
  EXPECT_EQ(receive(to.fd), "later from port " + port_text(a.address));
}

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &size), 0) << level << "/" << name << ": " << std::strerror(errno);
  return value;
}

LIVE_TEST(InetDatagrams, StayQueued) { keeps_queued_datagrams(AF_INET, 0, false); }
LIVE_TEST(InetDatagrams, StayQueuedForAnyAddress) { keeps_queued_datagrams(AF_INET, 0, true); }
LIVE_TEST(InetDatagrams, StayQueuedOnIpv6) { keeps_queued_datagrams(AF_INET6, 0, false); }
LIVE_TEST(InetDatagrams, StayQueuedForAnyIpv6Address) { keeps_queued_datagrams(AF_INET6, 0, true); }

LIVE_TEST(InetDatagrams, StayQueuedInAConnectedSocket) {
  const Bound a = bound(AF_INET), b = bound(AF_INET);
  ASSERT_EQ(::connect(a.fd, b.name(), b.size()), 0);
  ASSERT_EQ(::sendto(b.fd, "hello", 5, 0, a.name(), a.size()), 5);
  ASSERT_TRUE(await_input(a.fd));
  checkpoint_here();
  EXPECT_EQ(receive(a.fd), "hello from port " + port_text(b.address));
}

LIVE_TEST(InetDatagrams, StayWithTheirSocketOfAGroup) {
  Bound group[3];
  const int on = 1;
  for (Bound& b : group) {
    b.address = group[0].address;
    if (b.address.ss_family == 0) {
      b.address = bound(AF_INET).address;
      reinterpret_cast<sockaddr_in&>(b.address).sin_port = 0;
    }
    b.fd = ::socket(AF_INET, SOCK_DGRAM, 0);
    ASSERT_EQ(::setsockopt(b.fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on), 0);
    ASSERT_EQ(::bind(b.fd, b.name(), b.size()), 0) << std::strerror(errno);
    socklen_t size = sizeof b.address;
    ASSERT_EQ(::getsockname(b.fd, reinterpret_cast<sockaddr*>(&b.address), &size), 0);
  }
  for (int i = 0; i < 12; ++i) {
    const Bound from = bound(AF_INET);
    ASSERT_EQ(::sendto(from.fd, "x", 1, 0, group[0].name(), group[0].size()), 1);
  }
  std::string before;
  for (const Bound& b : group) {
    char byte = 0;
    before += ::recv(b.fd, &byte, 1, MSG_DONTWAIT) == 1 ? "1" : "0";  // one of each that has any
  }
  checkpoint_here();
  int left = 0;
  for (const Bound& b : group) {
    char byte = 0;
    int here = 0;
    while (::recv(b.fd, &byte, 1, MSG_DONTWAIT) == 1) {
      ++here;
    }
    left += here;
    EXPECT_EQ(option(b.fd, SOL_SOCKET, SO_REUSEPORT), 1);
  }
  EXPECT_EQ(left + static_cast<int>(std::count(before.begin(), before.end(), '1')), 12);
}

struct Choice {
  int level, name, value;
};

template <std::size_t N>
void keeps(int fd, const Choice (&choices)[N]) {
  for (const Choice& c : choices) {
    ASSERT_EQ(::setsockopt(fd, c.level, c.name, &c.value, sizeof c.value), 0)
        << c.level << "/" << c.name << ": " << std::strerror(errno);
  }
  checkpoint_here();
  for (const Choice& c : choices) {
    EXPECT_EQ(option(fd, c.level, c.name), c.value) << c.level << "/" << c.name;
  }
}

LIVE_TEST(InetOptions, AreKeptOnUdp) {
  keeps(bound(AF_INET).fd, {{SOL_SOCKET, SO_BROADCAST, 1},
                            {SOL_SOCKET, SO_TIMESTAMPNS, 1},
                            {SOL_SOCKET, SO_RXQ_OVFL, 1},
                            {SOL_SOCKET, SO_NO_CHECK, 1},
                            {SOL_SOCKET, SO_PRIORITY, 4},
                            {SOL_SOCKET, SO_BUSY_POLL, 50},
                            {IPPROTO_IP, IP_PKTINFO, 1},
                            {IPPROTO_IP, IP_RECVTTL, 1},
                            {IPPROTO_IP, IP_RECVTOS, 1},
                            {IPPROTO_IP, IP_RECVERR, 1},
                            {IPPROTO_IP, IP_RECVORIGDSTADDR, 1},
                            {IPPROTO_IP, IP_MULTICAST_TTL, 9},
                            {IPPROTO_IP, IP_MULTICAST_LOOP, 0},
                            {IPPROTO_IP, IP_MULTICAST_ALL, 0},
                            {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE},
                            {IPPROTO_IP, IP_MINTTL, 2},
                            {IPPROTO_UDP, UDP_CORK, 1}});
}

LIVE_TEST(InetOptions, AreKeptOnUdpOverIpv6) {
  keeps(bound(AF_INET6).fd, {{IPPROTO_IPV6, IPV6_UNICAST_HOPS, 12},
                             {IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 3},
                             {IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0},
                             {IPPROTO_IPV6, IPV6_RECVPKTINFO, 1},
                             {IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1},
                             {IPPROTO_IPV6, IPV6_RECVTCLASS, 1},
                             {IPPROTO_IPV6, IPV6_TCLASS, 0x20},
                             {IPPROTO_IPV6, IPV6_DONTFRAG, 1},
                             {IPPROTO_IPV6, IPV6_RECVERR, 1},
                             {IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0}});
}

LIVE_TEST(InetOptions, AreKeptOnAListener) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(::listen(fd, 9), 0);
  keeps(fd, {{IPPROTO_TCP, TCP_DEFER_ACCEPT, 3},
             {IPPROTO_TCP, TCP_FASTOPEN, 5},
             {IPPROTO_TCP, TCP_USER_TIMEOUT, 9000},
             {IPPROTO_TCP, TCP_MAXSEG, 1000},
             {IPPROTO_TCP, TCP_SAVE_SYN, 1},
             {IPPROTO_IP, IP_TRANSPARENT, 1},
             {SOL_SOCKET, SO_INCOMING_CPU, 0}});
}

LIVE_TEST(InetOptions, KeepALockedFilter) {
  const Bound to = bound(AF_INET), from = bound(AF_INET);
  // Everything that begins with an 'a' behind the UDP header.
  sock_filter code[] = {BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 8), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'a', 0, 1),
                        BPF_STMT(BPF_RET | BPF_K, 0xffff), BPF_STMT(BPF_RET | BPF_K, 0)};
  const sock_fprog program{4, code};
  ASSERT_EQ(::setsockopt(to.fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
  const int on = 1;
  ASSERT_EQ(::setsockopt(to.fd, SOL_SOCKET, SO_LOCK_FILTER, &on, sizeof on), 0);
  checkpoint_here();
  EXPECT_EQ(option(to.fd, SOL_SOCKET, SO_LOCK_FILTER), 1);
  ASSERT_EQ(::sendto(from.fd, "bad", 3, 0, to.name(), to.size()), 3);
  ASSERT_EQ(::sendto(from.fd, "able", 4, 0, to.name(), to.size()), 4);
  ASSERT_TRUE(await_input(to.fd));
  EXPECT_EQ(receive(to.fd), "able from port " + port_text(from.address));
}

LIVE_TEST(InetSocket, ListensOnForMptcp) {
  constexpr int kMptcp = 262;
  const int fd = ::socket(AF_INET, SOCK_STREAM, kMptcp);
  if (fd < 0) {
    GTEST_SKIP() << "this kernel has no MPTCP";
  }
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
  ASSERT_EQ(::listen(fd, 5), 0);
  socklen_t size = sizeof a;
  ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size), 0);
  checkpoint_here();
  EXPECT_EQ(option(fd, SOL_SOCKET, SO_PROTOCOL), kMptcp);
  const int client = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(::connect(client, reinterpret_cast<const sockaddr*>(&a), sizeof a), 0) << std::strerror(errno);
  const int server = ::accept(fd, nullptr, nullptr);
  EXPECT_EQ(option(server, SOL_SOCKET, SO_PROTOCOL), IPPROTO_TCP) << "a peer without MPTCP gets plain TCP";
  ::close(client);
  ::close(server);
  ::close(fd);
}

}  // namespace
}  // namespace ferry::live
