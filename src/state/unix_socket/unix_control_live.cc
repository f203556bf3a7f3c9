// Control data in queues, credentials, and ends of connections.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

bool send_fds(int to, std::string text, const std::vector<int>& fds) {
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  iovec part{text.data(), text.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* c = CMSG_FIRSTHDR(&message);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  std::memcpy(CMSG_DATA(c), fds.data(), fds.size() * sizeof(int));
  return ::sendmsg(to, &message, 0) == static_cast<ssize_t>(text.size());
}

struct Received {
  std::string text;
  std::vector<int> fds;
  ucred creds{-1, 0, 0};
};

Received receive(int from, std::size_t most = 64) {
  Received out;
  char buffer[256] = {}, control[512] = {};
  iovec part{buffer, std::min(most, sizeof buffer)};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t n = ::recvmsg(from, &message, MSG_DONTWAIT);
  out.text = n < 0 ? "?" : std::string(buffer, static_cast<std::size_t>(n));
  for (cmsghdr* c = n < 0 ? nullptr : CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_type == SCM_RIGHTS) {
      for (std::size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
        out.fds.push_back(fd);
      }
    } else if (c->cmsg_type == SCM_CREDENTIALS) {
      std::memcpy(&out.creds, CMSG_DATA(c), sizeof out.creds);
    }
  }
  return out;
}

LIVE_TEST(UnixControl, SocketsInsideSockets) {
  int outer[2], inner[2], core[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, outer), 0);
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM, 0, inner), 0);
  ASSERT_EQ(::pipe(core), 0);
  ASSERT_TRUE(send_fds(inner[0], "inner", {core[0], core[1]}));
  ::close(core[0]);
  ::close(core[1]);
  ASSERT_TRUE(send_fds(outer[0], "outer", {inner[1]}));
  ::close(inner[1]);
  checkpoint_here();
  const Received first = receive(outer[1]);
  EXPECT_EQ(first.text, "outer");
  ASSERT_EQ(first.fds.size(), 1U);
  const Received second = receive(first.fds[0]);
  EXPECT_EQ(second.text, "inner");
  ASSERT_EQ(second.fds.size(), 2U);
  EXPECT_EQ(::write(second.fds[1], "deep", 4), 4);
  char got[8] = {};
  EXPECT_EQ(::read(second.fds[0], got, sizeof got), 4);
  EXPECT_EQ(::send(inner[0], "alive", 5, 0), 5);
  EXPECT_EQ(receive(first.fds[0]).text, "alive");
}

LIVE_TEST(UnixControl, ASocketInItsOwnQueue) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  ASSERT_TRUE(send_fds(pair[0], "me", {pair[1], pair[0]}));
  checkpoint_here();
  const Received got = receive(pair[1]);
  EXPECT_EQ(got.text, "me");
  ASSERT_EQ(got.fds.size(), 2U);
  EXPECT_EQ(::send(got.fds[1], "through the copy", 16, 0), 16);
  EXPECT_EQ(receive(pair[1]).text, "through the copy");
}

LIVE_TEST(UnixControl, BothEndsOnlyInFlight) {
  int carrier[2], pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, carrier), 0);
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  ASSERT_EQ(::send(pair[0], "waiting", 7, 0), 7);
  ASSERT_TRUE(send_fds(carrier[0], "a", {pair[0]}));
  ASSERT_TRUE(send_fds(carrier[0], "b", {pair[1], pair[1]}));
  ::close(pair[0]);
  ::close(pair[1]);
  checkpoint_here();
  const Received a = receive(carrier[1]), b = receive(carrier[1]);
  ASSERT_EQ(a.fds.size(), 1U);
  ASSERT_EQ(b.fds.size(), 2U);
  EXPECT_EQ(receive(b.fds[1]).text, "waiting");
  EXPECT_EQ(::send(a.fds[0], "x", 1, 0), 1);
  EXPECT_EQ(receive(b.fds[0]).text, "x");
}

LIVE_TEST(UnixControl, DescriptorsSplitAStream) {
  int pair[2], ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::send(pair[0], "before ", 7, 0), 7);
  ASSERT_TRUE(send_fds(pair[0], "with", {ends[1]}));
  ASSERT_EQ(::send(pair[0], " after", 6, 0), 6);
  checkpoint_here();
  Received got = receive(pair[1]);
  EXPECT_EQ(got.text, "before with");
  ASSERT_EQ(got.fds.size(), 1U);
  got = receive(pair[1]);
  EXPECT_EQ(got.text, " after");
  EXPECT_TRUE(got.fds.empty());
}

LIVE_TEST(UnixControl, CredentialsOfQueuedMessages) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
  const int on = 1;
  ASSERT_EQ(::setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
  int go[2], say[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    (void)!::setresgid(501, 502, 501);
    (void)!::setresuid(401, 402, 401);
    (void)!::send(pair[0], "from the child", 14, 0);
    char byte = 'x';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  ASSERT_EQ(::send(pair[0], "from me", 7, 0), 7);
  checkpoint_here();
  Received got = receive(pair[1]);
  EXPECT_EQ(got.text, "from the child");
  EXPECT_EQ(got.creds.pid, child);
  EXPECT_EQ(got.creds.uid, 401U);
  EXPECT_EQ(got.creds.gid, 501U);
  got = receive(pair[1]);
  EXPECT_EQ(got.text, "from me");
  EXPECT_EQ(got.creds.pid, ::getpid());
  EXPECT_EQ(got.creds.uid, 0U);
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

LIVE_TEST(UnixControl, CredentialsOfPeers) {
  const std::string name = std::string(1, '\0') + "ferry-peercred-" + std::to_string(::getpid());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, name.data(), name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  const int server = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(server, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(server, 4), 0);
  int go[2], say[2], pair[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    (void)!::setresgid(601, 601, 601);
    (void)!::setresuid(701, 701, 701);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
    char byte = ::connect(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 ? 'c' : 'n';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    ucred creds{};
    socklen_t length = sizeof creds;
    ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &creds, &length);
    byte = creds.pid == ::getppid() && creds.uid == 0 ? 'y' : 'n';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'c');
  const int accepted = ::accept(server, nullptr, nullptr);
  ASSERT_GE(accepted, 0);
  checkpoint_here();
  ucred creds{};
  socklen_t length = sizeof creds;
  ASSERT_EQ(::getsockopt(accepted, SOL_SOCKET, SO_PEERCRED, &creds, &length), 0);
  EXPECT_EQ(creds.pid, child);
  EXPECT_EQ(creds.uid, 701U);
  EXPECT_EQ(creds.gid, 601U);
  ASSERT_EQ(::getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &creds, &length), 0);
  EXPECT_EQ(creds.pid, ::getpid());
  EXPECT_EQ(creds.uid, 0U);
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y') << "what the client sees of the server";
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

LIVE_TEST(UnixControl, ShutDownEachWayWithDataBehind) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    int writer_closed[2], reader_closed[2], both_closed[2];
    ASSERT_EQ(::socketpair(AF_UNIX, type, 0, writer_closed), 0);
    ASSERT_EQ(::socketpair(AF_UNIX, type, 0, reader_closed), 0);
    ASSERT_EQ(::socketpair(AF_UNIX, type, 0, both_closed), 0);
    ASSERT_EQ(::send(writer_closed[0], "rest", 4, 0), 4);
    ASSERT_EQ(::send(writer_closed[1], "other", 5, 0), 5);
    ASSERT_EQ(::shutdown(writer_closed[0], SHUT_WR), 0);
    ASSERT_EQ(::shutdown(reader_closed[0], SHUT_RD), 0);
    ASSERT_EQ(::send(both_closed[0], "last", 4, 0), 4);
    ASSERT_EQ(::shutdown(both_closed[0], SHUT_RDWR), 0);
    checkpoint_here();
    EXPECT_EQ(receive(writer_closed[1]).text, "rest");
    EXPECT_EQ(receive(writer_closed[1]).text, "");
    EXPECT_EQ(receive(writer_closed[0]).text, "other");
    EXPECT_EQ(::send(writer_closed[0], "x", 1, MSG_NOSIGNAL), -1);
    EXPECT_EQ(::send(writer_closed[1], "y", 1, MSG_NOSIGNAL), 1);
    EXPECT_EQ(receive(writer_closed[0]).text, "y");
    EXPECT_EQ(::send(reader_closed[1], "x", 1, MSG_NOSIGNAL), -1);
    EXPECT_EQ(::send(reader_closed[0], "z", 1, MSG_NOSIGNAL), 1);
    EXPECT_EQ(receive(reader_closed[1]).text, "z");
    EXPECT_EQ(receive(both_closed[1]).text, "last");
    EXPECT_EQ(receive(both_closed[1]).text, "");
  }
}

LIVE_TEST(UnixControl, FullQueueStaysFull) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
  const std::string piece(1000, 'f');
  std::size_t total = 0;
  for (;;) {
    const ssize_t n = ::send(pair[0], piece.data(), piece.size(), 0);
    if (n < 0) {
      break;
    }
    total += static_cast<std::size_t>(n);
  }
  checkpoint_here();
  std::size_t got = 0;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::recv(pair[1], buffer, sizeof buffer, 0)) > 0;) {
    got += static_cast<std::size_t>(n);
  }
  EXPECT_EQ(got, total);
  EXPECT_EQ(::send(pair[0], "x", 1, 0), 1);
}

LIVE_TEST(UnixControl, PeekOffsetAndTimeouts) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const int offset = 3;
  ASSERT_EQ(::setsockopt(pair[1], SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset), 0);
  const timeval limit{7, 250'000};
  ASSERT_EQ(::setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), 0);
  ASSERT_EQ(::send(pair[0], "0123456789", 10, 0), 10);
  checkpoint_here();
  int got = 0;
  socklen_t size = sizeof got;
  ASSERT_EQ(::getsockopt(pair[1], SOL_SOCKET, SO_PEEK_OFF, &got, &size), 0);
  EXPECT_EQ(got, 3);
  char byte = 0;
  EXPECT_EQ(::recv(pair[1], &byte, 1, MSG_PEEK), 1);
  EXPECT_EQ(byte, '3');
  timeval time{};
  size = sizeof time;
  ASSERT_EQ(::getsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &time, &size), 0);
  EXPECT_EQ(time.tv_sec, 7);
  EXPECT_GE(time.tv_usec, 200'000);
}

LIVE_TEST(UnixControl, ADeletedListenerWithItsConnections) {
  const std::string name = "/tmp/ferry-deleted-" + std::to_string(::getpid());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, name.c_str());
  const int server = ::socket(AF_UNIX, SOCK_STREAM, 0), client = ::socket(AF_UNIX, SOCK_STREAM, 0);
  const int waiting = ::socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(server, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(server, 3), 0);
  ASSERT_EQ(::connect(client, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  const int accepted = ::accept(server, nullptr, nullptr);
  ASSERT_EQ(::connect(waiting, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::unlink(name.c_str()), 0);
  checkpoint_here();
  EXPECT_EQ(::send(client, "a", 1, 0), 1);
  EXPECT_EQ(receive(accepted).text, "a");
  const int second = ::accept4(server, nullptr, nullptr, SOCK_NONBLOCK);
  ASSERT_GE(second, 0);
  EXPECT_EQ(::send(waiting, "b", 1, 0), 1);
  EXPECT_EQ(receive(second).text, "b");
  struct stat st {};
  EXPECT_EQ(::stat(name.c_str(), &st), -1);
}

LIVE_TEST(UnixControl, NeverConnectedAndResetOnes) {
  const int fresh = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
  const int packets = ::socket(AF_UNIX, SOCK_SEQPACKET, 0);
  int reset[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, reset), 0);
  ASSERT_EQ(::send(reset[0], "unread", 6, 0), 6);
  ::close(reset[1]);  // with unread data: the other end sees a reset
  checkpoint_here();
  EXPECT_EQ(::send(fresh, "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, ENOTCONN);
  EXPECT_EQ(::listen(packets, 1), -1);
  char byte = 0;
  EXPECT_EQ(::recv(reset[0], &byte, 1, MSG_DONTWAIT), -1);
  EXPECT_EQ(errno, ECONNRESET);
}

}  // namespace
}  // namespace ferry::live
