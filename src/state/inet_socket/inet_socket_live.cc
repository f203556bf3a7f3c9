#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

#include "live/live.h"
#include "live/loopback.h"

namespace ferry::live {
namespace {

std::uint16_t port_of(int fd) {
  sockaddr_in a{};
  socklen_t size = sizeof a;
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size), 0);
  return ntohs(a.sin_port);
}

int bound(int type) {
  const int fd = ::socket(AF_INET, type, 0);
  const sockaddr_in a = loopback(0);
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
  return fd;
}

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &size), 0);
  return value;
}

int connect_to(std::uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in a = loopback(port);
  EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
  return fd;
}

LIVE_TEST(InetSocket, ListensOn) {
  const int server = bound(SOCK_STREAM);
  const int on = 1, idle = 77;
  ASSERT_EQ(::setsockopt(server, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on), 0);
  ASSERT_EQ(::setsockopt(server, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle), 0);
  ASSERT_EQ(::setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
  ASSERT_EQ(::listen(server, 17), 0);
  const std::uint16_t port = port_of(server);
  checkpoint_here();
  EXPECT_EQ(port_of(server), port);
  EXPECT_EQ(option(server, SOL_SOCKET, SO_KEEPALIVE), 1);
  EXPECT_EQ(option(server, SOL_SOCKET, SO_REUSEADDR), 0);
  EXPECT_EQ(option(server, IPPROTO_TCP, TCP_KEEPIDLE), 77);
  EXPECT_EQ(option(server, IPPROTO_TCP, TCP_NODELAY), 1);
  tcp_info info{};
  socklen_t size = sizeof info;
  ASSERT_EQ(::getsockopt(server, IPPROTO_TCP, TCP_INFO, &info, &size), 0);
  EXPECT_EQ(info.tcpi_state, TCP_LISTEN);
  EXPECT_EQ(info.tcpi_sacked, 17U) << "the backlog";
  if (option(server, SOL_SOCKET, SO_ACCEPTCONN) == 1) {
    ::close(server);
  }
}

LIVE_TEST(InetSocket, KeepsConnectedDatagramSockets) {
  const int a = bound(SOCK_DGRAM), b = bound(SOCK_DGRAM);
  const sockaddr_in to_b = loopback(port_of(b)), to_a = loopback(port_of(a));
  ASSERT_EQ(::connect(a, reinterpret_cast<const sockaddr*>(&to_b), sizeof to_b), 0);
  checkpoint_here();
  EXPECT_EQ(port_of(a), ntohs(to_a.sin_port));
  sockaddr_in peer{};
  socklen_t size = sizeof peer;
  ASSERT_EQ(::getpeername(a, reinterpret_cast<sockaddr*>(&peer), &size), 0);
  EXPECT_EQ(peer.sin_port, to_b.sin_port);
}

LIVE_TEST_WITH(InetSocket, RefusesAnEstablishedConnection, {.refused = "an established TCP connection 127.0.0.1:"}) {
  const int server = bound(SOCK_STREAM);
  ASSERT_EQ(::listen(server, 1), 0);
  const int fd = connect_to(port_of(server));
  const int accepted = ::accept(server, nullptr, nullptr);
  checkpoint_here();
  ASSERT_EQ(::send(fd, "on", 2, 0), 2);
  char got[4] = {};
  EXPECT_EQ(::recv(accepted, got, sizeof got, 0), 2) << "the refused dump has left it as it was";
}

// The source of leave_running keeps its connection, so that flavour has nothing to check alike.
LIVE_TEST_WITH(InetSocket, ClosesConnectionsIfTold,
               {.dump = {"--tcp-close"}, .restore = {"--tcp-close"}, .leave_running = false}) {
  const int server = bound(SOCK_STREAM);
  // Inherited by the accepted socket, whose remains (TIME_WAIT) would be in the way of the next bind.
  const int on = 1;
  ASSERT_EQ(::setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
  ASSERT_EQ(::listen(server, 1), 0);
  const int fd = connect_to(port_of(server));
  const int accepted = ::accept(server, nullptr, nullptr);
  checkpoint_here();
  char got = 0;
  EXPECT_EQ(::recv(fd, &got, 1, MSG_DONTWAIT), 0);
  EXPECT_EQ(::recv(accepted, &got, 1, MSG_DONTWAIT), 0);
  EXPECT_EQ(::send(accepted, "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
}

LIVE_TEST(InetSocket, KeepsIpv6Only) {
  const int fd = ::socket(AF_INET6, SOCK_STREAM, 0);
  const int on = 1;
  ASSERT_EQ(::setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on), 0);
  sockaddr_in6 a{};
  a.sin6_family = AF_INET6;
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
  ASSERT_EQ(::listen(fd, 5), 0);
  checkpoint_here();
  EXPECT_EQ(option(fd, IPPROTO_IPV6, IPV6_V6ONLY), 1);
  EXPECT_EQ(option(fd, SOL_SOCKET, SO_ACCEPTCONN), 1);
}

}  // namespace
}  // namespace ferry::live
