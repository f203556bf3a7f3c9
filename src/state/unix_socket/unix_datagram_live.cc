// Datagram sockets: names, peers, what queues hold and who sent it.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string own_name(const char* what) { return "/tmp/ferry-dgram-" + std::to_string(::getpid()) + "-" + what; }

struct Address {
  sockaddr_un data{};
  socklen_t size = sizeof(sockaddr_un);
  explicit Address(const std::string& name) {
    data.sun_family = AF_UNIX;
    std::memcpy(data.sun_path, name.data(), name.size());
    size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size() + (name[0] == '\0' ? 0 : 1));
  }
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&data); }
};

int bound(const std::string& name) {
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM, 0);
  const Address address(name);
  return ::bind(fd, address.get(), address.size) == 0 ? fd : -1;
}

// The next datagram, and the name it came from.
std::string take(int fd, std::string* from = nullptr) {
  char buffer[256] = {};
  sockaddr_un source{};
  socklen_t size = sizeof source;
  const ssize_t n = ::recvfrom(fd, buffer, sizeof buffer, MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&source), &size);
  if (from != nullptr) {
    *from = size > sizeof(sa_family_t) ? std::string(source.sun_path) : std::string();
  }
  return n < 0 ? "?" : std::string(buffer, static_cast<std::size_t>(n));
}

bool send_to(int fd, const std::string& name, const std::string& text) {
  const Address address(name);
  return ::sendto(fd, text.data(), text.size(), MSG_DONTWAIT, address.get(), address.size) ==
         static_cast<ssize_t>(text.size());
}

LIVE_TEST(UnixDatagram, KeepsMessagesWithTheirSenders) {
  const std::string server_name = own_name("server"), named = own_name("named"), gone = own_name("gone");
  const int server = bound(server_name), client = bound(named), dead = bound(gone);
  const int nameless = ::socket(AF_UNIX, SOCK_DGRAM, 0);
  ASSERT_TRUE(send_to(client, server_name, "from the living"));
  ASSERT_TRUE(send_to(dead, server_name, "from the dead"));
  ASSERT_TRUE(send_to(nameless, server_name, "from nobody"));
  ASSERT_TRUE(send_to(client, server_name, ""));
  ::close(dead);
  ::unlink(gone.c_str());
  checkpoint_here();
  std::string from;
  EXPECT_EQ(take(server, &from), "from the living");
  EXPECT_EQ(from, named);
  EXPECT_EQ(take(server, &from), "from the dead");
  EXPECT_EQ(from, gone);
  EXPECT_EQ(take(server, &from), "from nobody");
  EXPECT_EQ(from, "");
  EXPECT_EQ(take(server, &from), "") << "an empty datagram is one";
  EXPECT_EQ(from, named);
  EXPECT_EQ(take(server), "?");
  EXPECT_TRUE(send_to(nameless, server_name, "new"));
  EXPECT_EQ(take(server), "new");
  ::unlink(server_name.c_str());
  ::unlink(named.c_str());
}

LIVE_TEST(UnixDatagram, ConnectedToANamedOneThatIsDeleted) {
  const std::string name = own_name("deleted");
  const int server = bound(name), client = ::socket(AF_UNIX, SOCK_DGRAM, 0);
  const Address address(name);
  ASSERT_EQ(::connect(client, address.get(), address.size), 0);
  ASSERT_EQ(::send(client, "before", 6, 0), 6);
  ASSERT_EQ(::unlink(name.c_str()), 0);
  checkpoint_here();
  EXPECT_EQ(take(server), "before");
  EXPECT_EQ(::send(client, "after", 5, 0), 5);
  EXPECT_EQ(take(server), "after");
  struct stat st {};
  EXPECT_EQ(::stat(name.c_str(), &st), -1);
  sockaddr_un got{};
  socklen_t size = sizeof got;
  ASSERT_EQ(::getsockname(server, reinterpret_cast<sockaddr*>(&got), &size), 0);
  EXPECT_EQ(std::string(got.sun_path), name);
}

LIVE_TEST(UnixDatagram, PairsWithNamesAndAutobind) {
  const std::string a_name = own_name("a"), b_name = own_name("b");
  const int a = bound(a_name), b = bound(b_name);
  const Address to_a(a_name), to_b(b_name);
  ASSERT_EQ(::connect(a, to_b.get(), to_b.size), 0);
  ASSERT_EQ(::connect(b, to_a.get(), to_a.size), 0);
  ASSERT_EQ(::send(a, "to b", 4, 0), 4);
  ASSERT_EQ(::send(b, "to a", 4, 0), 4);
  const int automatic = ::socket(AF_UNIX, SOCK_DGRAM, 0);
  sockaddr_un family{};
  family.sun_family = AF_UNIX;
  ASSERT_EQ(::bind(automatic, reinterpret_cast<sockaddr*>(&family), sizeof(sa_family_t)), 0);
  sockaddr_un before{}, after{};
  socklen_t size = sizeof before;
  ASSERT_EQ(::getsockname(automatic, reinterpret_cast<sockaddr*>(&before), &size), 0);
  checkpoint_here();
  EXPECT_EQ(take(b), "to b");
  EXPECT_EQ(take(a), "to a");
  EXPECT_EQ(::send(a, "x", 1, 0), 1);
  EXPECT_EQ(take(b), "x");
  const socklen_t wanted = size;
  size = sizeof after;
  ASSERT_EQ(::getsockname(automatic, reinterpret_cast<sockaddr*>(&after), &size), 0);
  EXPECT_EQ(size, wanted);
  EXPECT_EQ(std::memcmp(&before, &after, size), 0);
  ::unlink(a_name.c_str());
  ::unlink(b_name.c_str());
}

// The source removes the directory at its end.
LIVE_TEST_WITH(UnixDatagram, RelativeName, {.leave_running = false}) {
  const std::string directory = own_name("dir");
  ASSERT_EQ(::mkdir(directory.c_str(), 0755), 0);
  ASSERT_EQ(::chdir(directory.c_str()), 0);
  const int server = bound("here");
  ASSERT_EQ(::chdir("/"), 0);
  checkpoint_here();
  sockaddr_un got{};
  socklen_t size = sizeof got;
  ASSERT_EQ(::getsockname(server, reinterpret_cast<sockaddr*>(&got), &size), 0);
  EXPECT_STREQ(got.sun_path, "here");
  const int client = ::socket(AF_UNIX, SOCK_DGRAM, 0);
  EXPECT_TRUE(send_to(client, directory + "/here", "found"));
  EXPECT_EQ(take(server), "found");
  ::unlink((directory + "/here").c_str());
  ::rmdir(directory.c_str());
}

LIVE_TEST(UnixDatagram, SocketpairWithQueuesBothWays) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
  ASSERT_EQ(::send(fds[0], "one", 3, 0), 3);
  ASSERT_EQ(::send(fds[0], "two", 3, 0), 3);
  ASSERT_EQ(::send(fds[1], "back", 4, 0), 4);
  checkpoint_here();
  EXPECT_EQ(take(fds[1]), "one");
  EXPECT_EQ(take(fds[1]), "two");
  EXPECT_EQ(take(fds[0]), "back");
}

LIVE_TEST(UnixDatagram, ConnectedToItself) {
  const std::string name = own_name("self");
  const int fd = bound(name);
  const Address address(name);
  ASSERT_EQ(::connect(fd, address.get(), address.size), 0);
  ASSERT_EQ(::send(fd, "to me", 5, 0), 5);
  checkpoint_here();
  EXPECT_EQ(take(fd), "to me");
  EXPECT_EQ(::send(fd, "again", 5, 0), 5);
  EXPECT_EQ(take(fd), "again");
  ::unlink(name.c_str());
}

}  // namespace
}  // namespace ferry::live
