// Sockets in other network namespaces than the root task's, or than their own task's.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "live/family.h"
#include "live/live.h"
#include "live/loopback.h"

namespace ferry::live {
namespace {

const Options kKeepConnections{.dump = {"--tcp-established"}, .restore = {"--tcp-established"}};

bool new_network() {
  const int fd = ::unshare(CLONE_NEWNET) == 0 ? ::socket(AF_INET, SOCK_DGRAM, 0) : -1;
  ifreq lo{};
  std::strcpy(lo.ifr_name, "lo");
  lo.ifr_flags = IFF_UP;
  const bool up = fd >= 0 && ::ioctl(fd, SIOCSIFFLAGS, &lo) == 0;
  ::close(fd);
  return up;
}

int bound(int type, std::uint16_t port) {
  const int fd = ::socket(AF_INET, type, 0);
  const sockaddr_in a = loopback(port);
  return ::bind(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0 ? fd : -1;
}

bool has_port(int fd, std::uint16_t port) {
  sockaddr_in a{};
  socklen_t size = sizeof a;
  return ::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size) == 0 && ntohs(a.sin_port) == port;
}

int connected_to(std::uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  const sockaddr_in a = loopback(port);
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0 ? fd : -1;
}

bool passes(int from, int to) {
  char byte = 0;
  return ::send(from, "p", 1, MSG_NOSIGNAL) == 1 && ::recv(to, &byte, 1, 0) == 1 && byte == 'p';
}

struct Abstract {
  sockaddr_un name{};
  socklen_t size;
  explicit Abstract(const std::string& text)
      : size(static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size())) {
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path + 1, text.data(), text.size());
  }
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&name); }
};

int abstract_listener(const Abstract& name) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  return ::bind(fd, name.get(), name.size) == 0 && ::listen(fd, 5) == 0 ? fd : -1;
}

bool reaches(const Abstract& name, int listener) {
  const int client = ::socket(AF_UNIX, SOCK_STREAM, 0);
  const int server = ::connect(client, name.get(), name.size) == 0 ? ::accept(listener, nullptr, nullptr) : -1;
  const bool good = server >= 0 && passes(client, server);
  ::close(client);
  ::close(server);
  return good;
}

// The interface of a socket's own namespace (netdevice(7)).
bool sees(int socket, const char* interface) {
  ifreq request{};
  std::strncpy(request.ifr_name, interface, IFNAMSIZ - 1);
  return ::ioctl(socket, SIOCGIFINDEX, &request) == 0;
}

// Everything that one process has in its network namespace, with the same names and ports in each.
struct Sockets {
  int listener, client, server, udp, unix_listener, unix_client, unix_server, route;
  Abstract name{"ferry-networks"};

  bool make() {
    listener = bound(SOCK_STREAM, 4711);
    if (listener < 0 || ::listen(listener, 5) != 0) {
      return false;
    }
    client = connected_to(4711);
    server = ::accept(listener, nullptr, nullptr);
    udp = bound(SOCK_DGRAM, 4712);
    unix_listener = abstract_listener(name);
    unix_client = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (client < 0 || server < 0 || udp < 0 || unix_listener < 0 ||
        ::connect(unix_client, name.get(), name.size) != 0) {
      return false;
    }
    unix_server = ::accept(unix_listener, nullptr, nullptr);
    route = ::socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    sockaddr_nl own{};
    own.nl_family = AF_NETLINK;
    own.nl_pid = 4713;
    return ::bind(route, reinterpret_cast<const sockaddr*>(&own), sizeof own) == 0 &&
           ::send(client, "before", 6, 0) == 6;
  }
  [[nodiscard]] int fault() const {
    char got[8] = {};
    if (::recv(server, got, sizeof got, 0) != 6 || !passes(client, server) || !passes(server, client)) {
      return 1;
    }
    if (!has_port(udp, 4712) || !passes(unix_client, unix_server) || !reaches(name, unix_listener)) {
      return 2;
    }
    sockaddr_nl own{};
    socklen_t size = sizeof own;
    if (::getsockname(route, reinterpret_cast<sockaddr*>(&own), &size) != 0 || own.nl_pid != 4713) {
      return 3;
    }
    const int more = connected_to(4711);
    return more >= 0 && ::accept(listener, nullptr, nullptr) >= 0 ? 0 : 4;
  }
};

LIVE_TEST_WITH(Networks, EveryProcessKeepsItsSocketsInItsOwn, kKeepConnections) {
  ASSERT_TRUE(new_network());
  Family family;
  Sockets own;
  const pid_t child = fork_to([&] {
    Sockets theirs;
    if (!new_network() || !theirs.make()) {
      ::_exit(90);
    }
    family.stay([&] { return theirs.fault() == 0; });
  });
  ASSERT_GT(family.next_number(), 0);
  ASSERT_TRUE(own.make());

  checkpoint_here();

  EXPECT_EQ(own.fault(), 0);
  family.go();
  EXPECT_EQ(Family::end_of(child), 0);
}

LIVE_TEST_WITH(Networks, SocketsStayInOneThatNoTaskIsIn, kKeepConnections) {
  ASSERT_TRUE(new_network());
  Sockets first;
  ASSERT_TRUE(first.make());
  const int packets = ::socket(AF_PACKET, SOCK_DGRAM, 0);
  ASSERT_GE(packets, 0);
  ASSERT_TRUE(new_network());
  Sockets second;
  ASSERT_TRUE(second.make());

  checkpoint_here();

  EXPECT_EQ(second.fault(), 0);
  char got[8] = {};
  EXPECT_EQ(::recv(first.server, got, sizeof got, 0), 6);
  EXPECT_TRUE(passes(first.server, first.client));
  EXPECT_TRUE(passes(first.unix_server, first.unix_client));
  EXPECT_TRUE(has_port(first.udp, 4712));
  // Two of one name and one port can only be there in two namespaces; what is sent stays in its own.
  sockaddr_in to = loopback(4712);
  ASSERT_EQ(::sendto(first.udp, "x", 1, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to), 1);
  char byte = 0;
  EXPECT_EQ(::recv(first.udp, &byte, 1, MSG_DONTWAIT), 1);
  EXPECT_EQ(::recv(second.udp, &byte, 1, MSG_DONTWAIT), -1);
  EXPECT_TRUE(sees(packets, "lo"));
}

LIVE_TEST(Networks, SocketsMadeBeforeTheMoveStayBehind) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const int before = ::socket(AF_INET, SOCK_DGRAM, 0);
  const sockaddr_in any = loopback(0);
  ASSERT_EQ(::bind(before, reinterpret_cast<const sockaddr*>(&any), sizeof any), 0);
  ASSERT_TRUE(new_network());
  // No socket of the new namespace has been there before.
  const int after = bound(SOCK_DGRAM, 4714);
  ASSERT_GE(after, 0);

  checkpoint_here();

  EXPECT_TRUE(passes(pair[0], pair[1]));
  sockaddr_in own{};
  socklen_t size = sizeof own;
  ASSERT_EQ(::getsockname(before, reinterpret_cast<sockaddr*>(&own), &size), 0);
  EXPECT_NE(own.sin_port, 0);
  EXPECT_TRUE(has_port(after, 4714));
  // From the one namespace nothing comes to the other.
  ASSERT_EQ(::sendto(before, "x", 1, 0, reinterpret_cast<const sockaddr*>(&own), sizeof own), 1);
  const sockaddr_in other = loopback(4714);
  (void)::sendto(before, "x", 1, 0, reinterpret_cast<const sockaddr*>(&other), sizeof other);
  char byte = 0;
  EXPECT_EQ(::recv(before, &byte, 1, MSG_DONTWAIT), 1);
  EXPECT_EQ(::recv(after, &byte, 1, MSG_DONTWAIT), -1);
}

LIVE_TEST_WITH(Networks, UnixNamesOfAnotherMountNamespace, {.user_namespace = false}) {
  if (::getpid() != 1) {
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
  }
  ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  ASSERT_EQ(::mount("tmpfs", "/mnt", "tmpfs", 0, "mode=755"), 0);
  Family family;
  const pid_t child = fork_to([&] {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::strcpy(name.sun_path, "/mnt/here/socket");
    const auto* generic = reinterpret_cast<const sockaddr*>(&name);
    if (::unshare(CLONE_NEWNS) != 0 || ::mkdir("/mnt/here", 0755) != 0 ||
        ::mount("tmpfs", "/mnt/here", "tmpfs", 0, nullptr) != 0) {
      ::_exit(90);
    }
    const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0), client = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (::bind(listener, generic, sizeof name) != 0 || ::listen(listener, 5) != 0 ||
        ::connect(client, generic, sizeof name) != 0) {
      ::_exit(91);
    }
    const int server = ::accept(listener, nullptr, nullptr);
    family.stay([&] {
      const int more = ::socket(AF_UNIX, SOCK_STREAM, 0);
      return passes(client, server) && passes(server, client) && ::connect(more, generic, sizeof name) == 0;
    });
  });
  ASSERT_GT(family.next_number(), 0);

  checkpoint_here();

  struct stat st {};
  EXPECT_NE(::stat("/mnt/here/socket", &st), 0) << "the name has come to the wrong namespace";
  family.go();
  EXPECT_EQ(Family::end_of(child), 0);
}

}  // namespace
}  // namespace ferry::live
