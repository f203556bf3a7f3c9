// Internet sockets that are neither plain TCP nor plain UDP, and what binds and marks them.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/net_tstamp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <string>
#include <string_view>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

// Not beside what it was copied from, which has the same addresses.
const Options kKeepConnections{.dump = {"--tcp-established"}, .restore = {"--tcp-established"}, .leave_running = false};
// Options that take privileges over the first user namespace, which keeps its network here.
const Options kWithPrivileges{.user_namespace = false};
constexpr int kUdpLiteSend = 10, kUdpLiteReceive = 11;  // UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV

sockaddr_in address(const char* text, std::uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  EXPECT_EQ(::inet_pton(AF_INET, text, &a.sin_addr), 1);
  return a;
}

bool bind_to(int fd, const sockaddr_in& a) { return ::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0; }

sockaddr_in name_of(int fd) {
  sockaddr_in a{};
  socklen_t size = sizeof a;
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size), 0);
  return a;
}

bool send_to(int from, const sockaddr_in& to, std::string_view what) {
  return ::sendto(from, what.data(), what.size(), 0, reinterpret_cast<const sockaddr*>(&to), sizeof to) ==
         static_cast<ssize_t>(what.size());
}

struct Choice {
  int level, name, value;
};

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &size), 0) << level << "/" << name << ": " << std::strerror(errno);
  return value;
}

void choose(int fd, const std::vector<Choice>& choices) {
  for (const Choice& c : choices) {
    ASSERT_EQ(::setsockopt(fd, c.level, c.name, &c.value, sizeof c.value), 0)
        << c.level << "/" << c.name << ": " << std::strerror(errno);
  }
}

void expect(int fd, const std::vector<Choice>& choices) {
  for (const Choice& c : choices) {
    EXPECT_EQ(option(fd, c.level, c.name), c.value) << c.level << "/" << c.name;
  }
}

LIVE_TEST(InetKinds, UdpLite) {
  const int to = ::socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), from = ::socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
  ASSERT_GE(to, 0) << std::strerror(errno);
  ASSERT_TRUE(bind_to(to, address("127.0.0.1", 0)));
  const sockaddr_in before = name_of(to);
  choose(from, {{IPPROTO_UDPLITE, kUdpLiteSend, 20}});
  choose(to, {{IPPROTO_UDPLITE, kUdpLiteReceive, 16}});

  checkpoint_here();

  EXPECT_EQ(name_of(to).sin_port, before.sin_port);
  EXPECT_EQ(option(to, SOL_SOCKET, SO_PROTOCOL), IPPROTO_UDPLITE);
  expect(from, {{IPPROTO_UDPLITE, kUdpLiteSend, 20}});
  expect(to, {{IPPROTO_UDPLITE, kUdpLiteReceive, 16}});
  ASSERT_TRUE(send_to(from, before, "partly covered"));
  char got[32] = {};
  EXPECT_EQ(::recv(to, got, sizeof got, 0), 14);
}

// Each hears what it has asked for, and sends with the header that it has chosen.
LIVE_TEST_WITH(InetKinds, Raw, kWithPrivileges) {
  constexpr int kOwnProtocol = 253;  // for experiments (RFC 3692)
  const int listener = ::socket(AF_INET, SOCK_RAW, kOwnProtocol), bound = ::socket(AF_INET, SOCK_RAW, kOwnProtocol),
            headers = ::socket(AF_INET, SOCK_RAW, IPPROTO_RAW), six = ::socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6),
            ping = ::socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
  ASSERT_GE(listener, 0) << std::strerror(errno);
  ASSERT_GE(six, 0) << std::strerror(errno);
  ASSERT_TRUE(bind_to(bound, address("127.0.0.2", 0)));
  constexpr int kIcmpFilter = 1;  // raw(7), ICMP_FILTER
  const int unwanted = 1 << 3 | 1 << 11;
  ASSERT_EQ(::setsockopt(ping, SOL_RAW, kIcmpFilter, &unwanted, sizeof unwanted), 0);
  std::uint32_t unwanted6[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  ASSERT_EQ(::setsockopt(six, IPPROTO_ICMPV6, 1 /* ICMPV6_FILTER */, unwanted6, sizeof unwanted6), 0);

  checkpoint_here();

  EXPECT_EQ(option(ping, SOL_RAW, kIcmpFilter), unwanted);
  std::uint32_t now[8] = {};
  socklen_t size = sizeof now;
  ASSERT_EQ(::getsockopt(six, IPPROTO_ICMPV6, 1, now, &size), 0);
  EXPECT_EQ(std::memcmp(now, unwanted6, sizeof now), 0);
  EXPECT_EQ(option(headers, IPPROTO_IP, IP_HDRINCL), 1);
  EXPECT_EQ(name_of(bound).sin_addr.s_addr, address("127.0.0.2", 0).sin_addr.s_addr);
  ASSERT_TRUE(send_to(listener, address("127.0.0.1", 0), "to one"));
  char got[64] = {};
  EXPECT_EQ(::recv(listener, got, sizeof got, 0), 26);  // with its header
  EXPECT_EQ(::recv(bound, got, sizeof got, MSG_DONTWAIT), -1);
  ASSERT_TRUE(send_to(listener, address("127.0.0.2", 0), "to both"));
  EXPECT_EQ(::recv(bound, got, sizeof got, 0), 27);
}

LIVE_TEST(InetKinds, Ping) {
  // ping_group_range says which groups may have such sockets (icmp(7)); nobody by default.
  const int range =
      ::unshare(CLONE_NEWNET) == 0 ? ::open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY | O_CLOEXEC) : -1;
  if (range < 0 || ::write(range, "0 0", 3) != 3) {
    GTEST_SKIP() << "ping_group_range cannot be set: " << std::strerror(errno);
  }
  ::close(range);
  const int control = ::socket(AF_INET, SOCK_DGRAM, 0);
  ifreq lo{};
  std::strcpy(lo.ifr_name, "lo");
  lo.ifr_flags = IFF_UP;
  ASSERT_EQ(::ioctl(control, SIOCSIFFLAGS, &lo), 0);
  const int fd = ::socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
  ASSERT_GE(fd, 0) << std::strerror(errno);
  ASSERT_TRUE(bind_to(fd, address("127.0.0.1", 4321)));

  checkpoint_here();

  EXPECT_EQ(ntohs(name_of(fd).sin_port), 4321) << "the identifier of its requests";
  const unsigned char echo[9] = {8, 0, 0, 0, 0, 0, 0, 1, 'p'};
  ASSERT_TRUE(send_to(fd, address("127.0.0.1", 0), {reinterpret_cast<const char*>(echo), sizeof echo}));
  unsigned char got[32] = {};
  EXPECT_EQ(::recv(fd, got, sizeof got, 0), 9);
  EXPECT_EQ(got[0], 0) << "an echo reply";
}

LIVE_TEST_WITH(InetKinds, BoundToWhatIsNotThere, kWithPrivileges) {
  const int free = ::socket(AF_INET, SOCK_STREAM, 0), transparent = ::socket(AF_INET, SOCK_DGRAM, 0),
            free6 = ::socket(AF_INET6, SOCK_DGRAM, 0);
  choose(free, {{IPPROTO_IP, IP_FREEBIND, 1}});
  choose(transparent, {{IPPROTO_IP, IP_TRANSPARENT, 1}});
  ASSERT_TRUE(bind_to(free, address("192.0.2.1", 4801)));
  ASSERT_EQ(::listen(free, 3), 0);
  ASSERT_TRUE(bind_to(transparent, address("192.0.2.2", 4802)));
  choose(free6, {{IPPROTO_IPV6, IPV6_FREEBIND, 1}});
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  six.sin6_port = htons(4803);
  ASSERT_EQ(::inet_pton(AF_INET6, "2001:db8::1", &six.sin6_addr), 1);
  ASSERT_EQ(::bind(free6, reinterpret_cast<const sockaddr*>(&six), sizeof six), 0) << std::strerror(errno);

  checkpoint_here();

  EXPECT_EQ(name_of(free).sin_addr.s_addr, address("192.0.2.1", 0).sin_addr.s_addr);
  EXPECT_EQ(option(free, SOL_SOCKET, SO_ACCEPTCONN), 1);
  EXPECT_EQ(name_of(transparent).sin_port, htons(4802));
  expect(free, {{IPPROTO_IP, IP_FREEBIND, 1}});
  expect(transparent, {{IPPROTO_IP, IP_TRANSPARENT, 1}});
  expect(free6, {{IPPROTO_IPV6, IPV6_FREEBIND, 1}});
}

LIVE_TEST_WITH(InetKinds, OptionsOfAllSockets, kWithPrivileges) {
  const int fd = ::socket(AF_INET, SOCK_DGRAM, 0);
  const std::vector<Choice> choices = {{SOL_SOCKET, SO_MARK, 0x1234}, {SOL_SOCKET, SO_PRIORITY, 5},
                                       {SOL_SOCKET, SO_DONTROUTE, 1}, {SOL_SOCKET, SO_RCVLOWAT, 1},
                                       {SOL_SOCKET, SO_BROADCAST, 1}, {SOL_SOCKET, SO_INCOMING_CPU, 1},
                                       {SOL_SOCKET, SO_OOBINLINE, 1}};
  choose(fd, choices);
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3), 0);
  const sock_txtime sending{CLOCK_TAI, SOF_TXTIME_REPORT_ERRORS};
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_TXTIME, &sending, sizeof sending), 0) << std::strerror(errno);
  const timeval wait{3, 250000};
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait), 0);

  checkpoint_here();

  expect(fd, choices);
  char device[16] = {};
  socklen_t size = sizeof device;
  ASSERT_EQ(::getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, &size), 0);
  EXPECT_STREQ(device, "lo");
  sock_txtime now{};
  size = sizeof now;
  ASSERT_EQ(::getsockopt(fd, SOL_SOCKET, SO_TXTIME, &now, &size), 0);
  EXPECT_EQ(now.clockid, CLOCK_TAI);
  EXPECT_EQ(now.flags, static_cast<unsigned>(SOF_TXTIME_REPORT_ERRORS));
  timeval waits{};
  size = sizeof waits;
  ASSERT_EQ(::getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &waits, &size), 0);
  EXPECT_EQ(waits.tv_sec, 3);
}

LIVE_TEST_WITH(InetKinds, OptionsOfAConnection, kKeepConnections) {
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0), client = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_TRUE(bind_to(listener, address("127.0.0.1", 0)));
  ASSERT_EQ(::listen(listener, 1), 0);
  const sockaddr_in to = name_of(listener);
  ASSERT_EQ(::connect(client, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);
  const int server = ::accept(listener, nullptr, nullptr);
  const std::vector<Choice> choices = {{IPPROTO_TCP, TCP_NODELAY, 1},
                                       {IPPROTO_TCP, TCP_CORK, 1},
                                       {IPPROTO_TCP, TCP_KEEPIDLE, 71},
                                       {IPPROTO_TCP, TCP_KEEPINTVL, 12},
                                       {IPPROTO_TCP, TCP_KEEPCNT, 7},
                                       {IPPROTO_TCP, TCP_USER_TIMEOUT, 12345},
                                       {IPPROTO_TCP, TCP_SYNCNT, 3},
                                       {IPPROTO_TCP, TCP_LINGER2, 33},
                                       {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384},
                                       {IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1},
                                       {IPPROTO_TCP, TCP_INQ, 1},
                                       {SOL_SOCKET, SO_KEEPALIVE, 1},
                                       {SOL_SOCKET, SO_PRIORITY, 3},
                                       {IPPROTO_IP, IP_TOS, 0x10},
                                       {IPPROTO_IP, IP_TTL, 44}};
  choose(client, choices);
  const linger wait{1, 9};
  ASSERT_EQ(::setsockopt(client, SOL_SOCKET, SO_LINGER, &wait, sizeof wait), 0);
  ASSERT_EQ(::setsockopt(client, IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0);
  std::vector<int> before;
  for (const Choice& c : choices) {
    before.push_back(option(client, c.level, c.name));  // IP_TOS has its say in the priority
  }

  checkpoint_here();

  for (std::size_t i = 0; i < choices.size(); ++i) {
    EXPECT_EQ(option(client, choices[i].level, choices[i].name), before[i])
        << choices[i].level << "/" << choices[i].name;
  }
  linger now{};
  socklen_t size = sizeof now;
  ASSERT_EQ(::getsockopt(client, SOL_SOCKET, SO_LINGER, &now, &size), 0);
  EXPECT_EQ(now.l_linger, 9);
  char algorithm[16] = {};
  size = sizeof algorithm;
  ASSERT_EQ(::getsockopt(client, IPPROTO_TCP, TCP_CONGESTION, algorithm, &size), 0);
  EXPECT_STREQ(algorithm, "reno");
  choose(client, {{IPPROTO_TCP, TCP_CORK, 0}});
  ASSERT_EQ(::send(client, "x", 1, 0), 1);
  char byte = 0;
  EXPECT_EQ(::recv(server, &byte, 1, 0), 1);
}

LIVE_TEST(InetKinds, ListenersOfOnePort) {
  int group[3];
  sockaddr_in at = address("127.0.0.1", 0);
  for (int& fd : group) {
    fd = ::socket(AF_INET, SOCK_STREAM, 0);
    choose(fd, {{SOL_SOCKET, SO_REUSEPORT, 1}});
    ASSERT_TRUE(bind_to(fd, at)) << std::strerror(errno);
    at = name_of(fd);
    ASSERT_EQ(::listen(fd, 64), 0);
  }

  checkpoint_here();

  int reached[3] = {};
  for (const int fd : group) {
    ASSERT_EQ(::fcntl(fd, F_SETFL, O_NONBLOCK), 0);
  }
  for (int i = 0; i < 64; ++i) {
    const int client = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(::connect(client, reinterpret_cast<const sockaddr*>(&at), sizeof at), 0);
    for (int k = 0; k < 3; ++k) {
      const int server = ::accept(group[k], nullptr, nullptr);
      reached[k] += server >= 0 ? 1 : 0;
      ::close(server);
    }
    ::close(client);
  }
  EXPECT_EQ(reached[0] + reached[1] + reached[2], 64);
  for (int k = 0; k < 3; ++k) {
    EXPECT_GT(reached[k], 0) << "listener " << k << " is not in the group any more";
  }
}

}  // namespace
}  // namespace ferry::live
