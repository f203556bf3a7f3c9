#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string take(int fd) {
  char buffer[256];
  const ssize_t n = ::recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
  return n < 0 ? std::string("errno ") + std::to_string(errno) : std::string(buffer, static_cast<std::size_t>(n));
}

sockaddr_un address(const std::string& name, socklen_t& size) {
  sockaddr_un out{};
  out.sun_family = AF_UNIX;
  std::memcpy(out.sun_path, name.data(), name.size());
  size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  return out;
}

int listener(const std::string& name) {
  socklen_t size = 0;
  const sockaddr_un a = address(name, size);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&a), size), 0);
  EXPECT_EQ(::listen(fd, 8), 0);
  return fd;
}

int client(const std::string& name) {
  socklen_t size = 0;
  const sockaddr_un a = address(name, size);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_EQ(::connect(fd, reinterpret_cast<const sockaddr*>(&a), size), 0);
  return fd;
}

std::string name_of(int fd) {
  sockaddr_un a{};
  socklen_t size = sizeof a;
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size), 0);
  return std::string(a.sun_path, size - offsetof(sockaddr_un, sun_path));
}

LIVE_TEST(UnixSocket, KeepsAPairAndItsQueues) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  ASSERT_EQ(::send(fds[0], "to the right", 12, 0), 12);
  ASSERT_EQ(::send(fds[1], "to the left", 11, 0), 11);
  ASSERT_EQ(::shutdown(fds[0], SHUT_WR), 0);
  checkpoint_here();
  EXPECT_EQ(take(fds[1]), "to the right");
  EXPECT_EQ(take(fds[1]), "") << "the end of file after what was sent";
  EXPECT_EQ(take(fds[0]), "to the left");
  EXPECT_EQ(::send(fds[1], "more", 4, 0), 4);
  EXPECT_EQ(take(fds[0]), "more");
}

LIVE_TEST(UnixSocket, KeepsBordersOfMessages) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), 0);
  ASSERT_EQ(::send(fds[0], "one", 3, 0), 3);
  ASSERT_EQ(::send(fds[0], "", 0, 0), 0);
  ASSERT_EQ(::send(fds[0], "three", 5, 0), 5);
  checkpoint_here();
  EXPECT_EQ(take(fds[1]), "one");
  EXPECT_EQ(take(fds[1]), "");
  EXPECT_EQ(take(fds[1]), "three");
}

LIVE_TEST(UnixSocket, KeepsDescriptorsInFlight) {
  int fds[2], inner[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  ASSERT_EQ(::pipe(inner), 0);
  char control[CMSG_SPACE(sizeof(int))] = {};
  char payload = 'x';
  iovec part{&payload, 1};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* c = CMSG_FIRSTHDR(&message);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(c), &inner[1], sizeof(int));
  ASSERT_EQ(::sendmsg(fds[0], &message, 0), 1);
  ::close(inner[1]);  // from now on it is in flight only
  checkpoint_here();
  ASSERT_EQ(::recvmsg(fds[1], &message, MSG_DONTWAIT), 1);
  c = CMSG_FIRSTHDR(&message);
  ASSERT_NE(c, nullptr);
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
  ASSERT_EQ(::write(fd, "through", 7), 7);
  char got[16] = {};
  ASSERT_EQ(::read(inner[0], got, sizeof got), 7);
  EXPECT_STREQ(got, "through");
}

LIVE_TEST(UnixSocket, KeepsListenersAcceptedOnesAndThoseThatWait) {
  const std::string name = "/tmp/ferry-unix-" + std::to_string(::getpid());
  const int server = listener(name);
  const int first = client(name);
  const int accepted = ::accept(server, nullptr, nullptr);
  ASSERT_GE(accepted, 0);
  const int waiting = client(name);
  struct stat before {};
  ASSERT_EQ(::chmod(name.c_str(), 0640), 0);
  ASSERT_EQ(::stat(name.c_str(), &before), 0);
  checkpoint_here();
  struct stat after {};
  ASSERT_EQ(::stat(name.c_str(), &after), 0);
  EXPECT_EQ(after.st_mode, before.st_mode);
  EXPECT_STREQ(name_of(accepted).c_str(), name.c_str());
  ASSERT_EQ(::send(first, "hello", 5, 0), 5);
  EXPECT_EQ(take(accepted), "hello");
  const int second = ::accept4(server, nullptr, nullptr, SOCK_NONBLOCK);
  ASSERT_GE(second, 0) << "the connection that waited";
  ASSERT_EQ(::send(waiting, "late", 4, 0), 4);
  EXPECT_EQ(take(second), "late");
  const int third = client(name);
  EXPECT_GE(::accept(server, nullptr, nullptr), 0);
  ::close(third);
  ::unlink(name.c_str());
}

LIVE_TEST(UnixSocket, KeepsAbstractNames) {
  const std::string name = std::string(1, '\0') + "ferry-" + std::to_string(::getpid());
  const int server = listener(name);
  checkpoint_here();
  EXPECT_EQ(name_of(server), name);
  const int fd = client(name);
  EXPECT_GE(::accept(server, nullptr, nullptr), 0);
  ::close(fd);
}

LIVE_TEST(UnixSocket, SeesThatThePeerIsGone) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
  ASSERT_EQ(::send(fds[1], "last words", 10, 0), 10);
  ::close(fds[1]);
  checkpoint_here();
  EXPECT_EQ(take(fds[0]), "last words");
  EXPECT_EQ(take(fds[0]), "");
  EXPECT_EQ(::send(fds[0], "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
}

LIVE_TEST(UnixSocket, KeepsOptions) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, fds), 0);
  const int on = 1, size = 100000;
  ASSERT_EQ(::setsockopt(fds[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
  ASSERT_EQ(::setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
  checkpoint_here();
  int got = 0;
  socklen_t length = sizeof got;
  ASSERT_EQ(::getsockopt(fds[0], SOL_SOCKET, SO_PASSCRED, &got, &length), 0);
  EXPECT_EQ(got, 1);
  ASSERT_EQ(::getsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &got, &length), 0);
  EXPECT_EQ(got, 2 * size);
  ASSERT_EQ(::getsockopt(fds[0], SOL_SOCKET, SO_PEEK_OFF, &got, &length), 0);
  EXPECT_EQ(got, -1);
  EXPECT_NE(::fcntl(fds[0], F_GETFL) & O_NONBLOCK, 0);
}

}  // namespace
}  // namespace ferry::live
