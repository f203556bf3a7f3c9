#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

// A killed source leaves TIME_WAIT behind, which the copy that is restored after a dump that left it running
// would run into; the peers of a real one stay alive.
const Options kKept{.dump = {"--tcp-established"}, .restore = {"--tcp-established"}, .leave_running = false};

struct Pair {
  int server = -1, client = -1;
};

sockaddr_storage any_loopback(int family) {
  sockaddr_storage out{};
  out.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    reinterpret_cast<sockaddr_in&>(out).sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  } else {
    reinterpret_cast<sockaddr_in6&>(out).sin6_addr = in6addr_loopback;
  }
  return out;
}

socklen_t size_of(const sockaddr_storage& a) {
  return a.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
}

// Two ends of one connection, the listener closed.
Pair connected(int family) {
  Pair out;
  sockaddr_storage address = any_loopback(family);
  const int listener = ::socket(family, SOCK_STREAM, 0);
  const int on = 1;
  EXPECT_EQ(::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
  EXPECT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), size_of(address)), 0);
  EXPECT_EQ(::listen(listener, 5), 0);
  socklen_t size = sizeof address;
  EXPECT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  out.client = ::socket(family, SOCK_STREAM, 0);
  EXPECT_EQ(::connect(out.client, reinterpret_cast<const sockaddr*>(&address), size_of(address)), 0)
      << std::strerror(errno);
  out.server = ::accept(listener, nullptr, nullptr);
  EXPECT_GE(out.server, 0);
  ::close(listener);
  return out;
}

tcp_info info(int fd) {
  tcp_info out{};
  socklen_t size = sizeof out;
  EXPECT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &out, &size), 0);
  return out;
}
unsigned state(int fd) { return info(fd).tcpi_state; }

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &size), 0);
  return value;
}

bool await_state(int fd, unsigned wanted) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (state(fd) != wanted && std::chrono::steady_clock::now() < deadline) {
    ::sched_yield();
  }
  return state(fd) == wanted;
}

char byte_at(std::size_t i) { return static_cast<char>(i * 2654435761U >> 13); }

std::string pattern(std::size_t from, std::size_t size) {
  std::string out(size, '\0');
  for (std::size_t i = 0; i < size; ++i) {
    out[i] = byte_at(from + i);
  }
  return out;
}

// Exactly `size` bytes, or what came until the end of file or 20 s of silence.
std::string read_bytes(int fd, std::size_t size) {
  std::string out(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    pollfd p{fd, POLLIN, 0};
    if (::poll(&p, 1, 20'000) != 1) {
      break;
    }
    const ssize_t n = ::recv(fd, out.data() + done, size - done, 0);
    if (n <= 0) {
      break;
    }
    done += static_cast<std::size_t>(n);
  }
  out.resize(done);
  return out;
}

void talk(int a, int b, const std::string& what) {
  ASSERT_EQ(::send(a, what.data(), what.size(), MSG_NOSIGNAL), static_cast<ssize_t>(what.size()))
      << std::strerror(errno);
  EXPECT_EQ(read_bytes(b, what.size()), what);
}

void talk_both_ways(const Pair& pair) {
  talk(pair.client, pair.server, "from the client");
  talk(pair.server, pair.client, "from the server");
}

// As much as the two buffers take.
std::size_t fill(int fd) {
  std::size_t written = 0;
  for (int full = 0; full < 2;) {
    const std::string piece = pattern(written, 8192);
    const ssize_t n = ::send(fd, piece.data(), piece.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      written += static_cast<std::size_t>(n);
      full = 0;
    } else {
      pollfd p{fd, POLLOUT, 0};
      full += ::poll(&p, 1, 50) == 0 ? 1 : 0;
    }
  }
  return written;
}

LIVE_TEST_WITH(Tcp, KeepsAConnection, kKept) {
  const Pair pair = connected(AF_INET);
  talk_both_ways(pair);
  const tcp_info before = info(pair.client);
  checkpoint_here();
  const tcp_info after = info(pair.client);
  EXPECT_EQ(after.tcpi_state, before.tcpi_state);
  EXPECT_EQ(after.tcpi_options, before.tcpi_options);
  EXPECT_EQ(after.tcpi_snd_wscale, before.tcpi_snd_wscale);
  EXPECT_EQ(after.tcpi_rcv_wscale, before.tcpi_rcv_wscale);
  EXPECT_EQ(option(pair.server, SOL_SOCKET, SO_REUSEADDR), 1) << "inherited from the listener";
  EXPECT_EQ(option(pair.client, SOL_SOCKET, SO_REUSEADDR), 0);
  talk_both_ways(pair);
  checkpoint_here();
  talk_both_ways(pair);
}

LIVE_TEST_WITH(
    Tcp, GoesOnInTheSourceThatIsLeftRunning,
    {.dump = {"--tcp-established"}, .restore = {"--tcp-established"}, .host = false, .pid_namespace = false}) {
  const Pair pair = connected(AF_INET);
  // No TIME_WAIT when the source is killed, so that the copy can have the same ports.
  const linger reset{1, 0};
  ASSERT_EQ(::setsockopt(pair.client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
  ASSERT_EQ(::setsockopt(pair.server, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
  ASSERT_EQ(::send(pair.client, "queued", 6, 0), 6);
  checkpoint_here();
  EXPECT_EQ(read_bytes(pair.server, 6), "queued");
  EXPECT_EQ(option(pair.server, SOL_SOCKET, SO_REUSEADDR), 1);
  talk_both_ways(pair);
}

LIVE_TEST_WITH(Tcp, KeepsIpv6, kKept) {
  const Pair pair = connected(AF_INET6);
  talk_both_ways(pair);
  checkpoint_here();
  talk_both_ways(pair);
}

LIVE_TEST_WITH(Tcp, KeepsMappedAddresses, kKept) {
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  const int listener = ::socket(AF_INET6, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listener, 5), 0);
  socklen_t size = sizeof address;
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = address.sin6_port;
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  Pair pair;
  pair.client = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(::connect(pair.client, reinterpret_cast<const sockaddr*>(&v4), sizeof v4), 0);
  pair.server = ::accept(listener, nullptr, nullptr);
  checkpoint_here();
  talk_both_ways(pair);
  size = sizeof address;
  ASSERT_EQ(::getpeername(pair.server, reinterpret_cast<sockaddr*>(&address), &size), 0);
  EXPECT_TRUE(IN6_IS_ADDR_V4MAPPED(&address.sin6_addr));
  ::close(listener);
}

LIVE_TEST_WITH(Tcp, KeepsFullQueuesInBothDirections, kKept) {
  const Pair pair = connected(AF_INET);
  const std::size_t up = fill(pair.client), down = fill(pair.server);
  ASSERT_GT(up, 100'000U);
  checkpoint_here();
  EXPECT_EQ(read_bytes(pair.server, up), pattern(0, up));
  EXPECT_EQ(read_bytes(pair.client, down), pattern(0, down));
  talk_both_ways(pair);
}

LIVE_TEST_WITH(Tcp, KeepsWhatTheProgramHeldBack, kKept) {
  const Pair pair = connected(AF_INET);
  const int on = 1, off = 0;
  ASSERT_EQ(::setsockopt(pair.client, IPPROTO_TCP, TCP_CORK, &on, sizeof on), 0);
  ASSERT_EQ(::send(pair.client, "corked", 6, 0), 6);
  checkpoint_here();
  EXPECT_EQ(option(pair.client, IPPROTO_TCP, TCP_CORK), 1);
  ASSERT_EQ(::setsockopt(pair.client, IPPROTO_TCP, TCP_CORK, &off, sizeof off), 0);
  EXPECT_EQ(read_bytes(pair.server, 6), "corked");
  talk_both_ways(pair);
}

LIVE_TEST_WITH(Tcp, KeepsTheHalfThatIsOpen, kKept) {
  const Pair pair = connected(AF_INET);
  ASSERT_EQ(::send(pair.client, "last words", 10, 0), 10);
  ASSERT_EQ(::shutdown(pair.client, SHUT_WR), 0);
  ASSERT_TRUE(await_state(pair.client, TCP_FIN_WAIT2));
  ASSERT_TRUE(await_state(pair.server, TCP_CLOSE_WAIT));
  checkpoint_here();
  EXPECT_EQ(state(pair.client), unsigned{TCP_FIN_WAIT2});
  EXPECT_EQ(state(pair.server), unsigned{TCP_CLOSE_WAIT});
  EXPECT_EQ(read_bytes(pair.server, 11), "last words") << "and the end of file";
  talk(pair.server, pair.client, "an answer");
  EXPECT_EQ(::send(pair.client, "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
  ASSERT_EQ(::shutdown(pair.server, SHUT_WR), 0);
  EXPECT_EQ(read_bytes(pair.client, 1), "") << "the end of file of the other direction";
}

LIVE_TEST_WITH(Tcp, KeepsAnEndThatWasNotAcknowledged, kKept) {
  const Pair pair = connected(AF_INET);
  // The FIN stands behind data for which the peer has no room.
  const std::size_t size = fill(pair.client);
  ASSERT_EQ(::shutdown(pair.client, SHUT_WR), 0);
  ASSERT_EQ(state(pair.client), unsigned{TCP_FIN_WAIT1});
  checkpoint_here();
  EXPECT_EQ(read_bytes(pair.server, size + 1), pattern(0, size));
  talk(pair.server, pair.client, "an answer");
  EXPECT_TRUE(await_state(pair.client, TCP_FIN_WAIT2));
}

LIVE_TEST_WITH(Tcp, KeepsASocketThatReadsNoMore, kKept) {
  const Pair pair = connected(AF_INET);
  ASSERT_EQ(::shutdown(pair.server, SHUT_RD), 0);
  checkpoint_here();
  EXPECT_EQ(state(pair.server), unsigned{TCP_ESTABLISHED});
  char byte = 0;
  EXPECT_EQ(::recv(pair.server, &byte, 1, MSG_DONTWAIT), 0);
  talk(pair.server, pair.client, "it still writes");
}

LIVE_TEST_WITH(Tcp, KeepsUrgentData, kKept) {
  const Pair pair = connected(AF_INET);
  ASSERT_EQ(::send(pair.client, "before", 6, 0), 6);
  ASSERT_EQ(::send(pair.client, "!", 1, MSG_OOB), 1);
  ASSERT_EQ(::send(pair.client, "behind", 6, 0), 6);
  pollfd p{pair.server, POLLPRI, 0};
  ASSERT_EQ(::poll(&p, 1, 5000), 1);
  int unread = 0;
  while (::ioctl(pair.server, FIONREAD, &unread) == 0 && unread < 6) {
  }
  checkpoint_here();
  char got[16] = {};
  EXPECT_EQ(::recv(pair.server, got, sizeof got, 0), 6) << "a read ends at the mark";
  EXPECT_EQ(std::string(got, 6), "before");
  EXPECT_EQ(::ioctl(pair.server, SIOCATMARK, &unread), 0);
  EXPECT_EQ(unread, 1);
  EXPECT_EQ(::recv(pair.server, got, 1, MSG_OOB), 1);
  EXPECT_EQ(got[0], '!');
  EXPECT_EQ(read_bytes(pair.server, 6), "behind");
  talk_both_ways(pair);
}

LIVE_TEST_WITH(Tcp, DoesNotGiveUrgentDataASecondTime, kKept) {
  const Pair pair = connected(AF_INET);
  ASSERT_EQ(::send(pair.client, "ab!", 3, MSG_OOB), 3);
  ASSERT_EQ(::send(pair.client, "cd", 2, 0), 2);
  pollfd p{pair.server, POLLPRI, 0};
  ASSERT_EQ(::poll(&p, 1, 5000), 1);
  char got = 0;
  ASSERT_EQ(::recv(pair.server, &got, 1, MSG_OOB), 1);
  checkpoint_here();
  EXPECT_EQ(read_bytes(pair.server, 4), "abcd");
}

LIVE_TEST_WITH(Tcp, KeepsItsOptions, kKept) {
  const Pair pair = connected(AF_INET);
  struct {
    int level, name, value;
  } const options[] = {{SOL_SOCKET, SO_KEEPALIVE, 1},
                       {IPPROTO_TCP, TCP_KEEPIDLE, 111},
                       {IPPROTO_TCP, TCP_KEEPINTVL, 7},
                       {IPPROTO_TCP, TCP_KEEPCNT, 4},
                       {IPPROTO_TCP, TCP_NODELAY, 1},
                       {IPPROTO_TCP, TCP_USER_TIMEOUT, 45'000},
                       {IPPROTO_TCP, TCP_LINGER2, 17},
                       {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 65'536},
                       {IPPROTO_TCP, TCP_SYNCNT, 3},
                       {IPPROTO_IP, IP_TOS, 0x10},
                       {IPPROTO_IP, IP_TTL, 33},
                       {IPPROTO_IP, IP_RECVTTL, 1},
                       {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT},
                       {SOL_SOCKET, SO_OOBINLINE, 1},
                       {SOL_SOCKET, SO_PRIORITY, 5},
                       {SOL_SOCKET, SO_MARK, 77},
                       {SOL_SOCKET, SO_RCVLOWAT, 3}};
  for (const auto& o : options) {
    ASSERT_EQ(::setsockopt(pair.client, o.level, o.name, &o.value, sizeof o.value), 0) << o.level << "/" << o.name;
  }
  const char reno[] = "reno";
  ASSERT_EQ(::setsockopt(pair.client, IPPROTO_TCP, TCP_CONGESTION, reno, sizeof reno - 1), 0);
  checkpoint_here();
  for (const auto& o : options) {
    EXPECT_EQ(option(pair.client, o.level, o.name), o.value) << o.level << "/" << o.name;
  }
  char congestion[16] = {};
  socklen_t size = sizeof congestion;
  ASSERT_EQ(::getsockopt(pair.client, IPPROTO_TCP, TCP_CONGESTION, congestion, &size), 0);
  EXPECT_STREQ(congestion, "reno");
  talk_both_ways(pair);
}

LIVE_TEST(Tcp, KeepsTheLastBytesOfAnEndedConnection) {
  const Pair pair = connected(AF_INET);
  ASSERT_EQ(::send(pair.client, "last", 4, 0), 4);
  ASSERT_EQ(::shutdown(pair.client, SHUT_WR), 0);
  ASSERT_EQ(::shutdown(pair.server, SHUT_WR), 0);
  ASSERT_TRUE(await_state(pair.server, TCP_CLOSE));
  ::close(pair.client);
  checkpoint_here();
  EXPECT_EQ(state(pair.server), unsigned{TCP_CLOSE});
  EXPECT_EQ(read_bytes(pair.server, 5), "last") << "and the end of file";
  EXPECT_EQ(::send(pair.server, "x", 1, MSG_NOSIGNAL), -1);
  EXPECT_EQ(errno, EPIPE);
}

LIVE_TEST(Tcp, TellsOfAResetThatCameBefore) {
  const Pair pair = connected(AF_INET);
  const linger reset{1, 0};
  ASSERT_EQ(::setsockopt(pair.client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset), 0);
  ::close(pair.client);
  ASSERT_TRUE(await_state(pair.server, TCP_CLOSE));
  checkpoint_here();
  char byte = 0;
  EXPECT_EQ(::recv(pair.server, &byte, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
  EXPECT_EQ(::recv(pair.server, &byte, 1, 0), 0);
}

LIVE_TEST_WITH(Tcp, GoesOnConnecting, kKept) {
  // A full accept queue lets further handshakes wait.
  sockaddr_storage address = any_loopback(AF_INET);
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), size_of(address)), 0);
  socklen_t size = sizeof address;
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  // Nothing answers a SYN that a filter swallows.
  sock_filter none[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
  const sock_fprog program{1, none};
  ASSERT_EQ(::setsockopt(listener, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
  ASSERT_EQ(::listen(listener, 5), 0);
  Pair pair;
  pair.client = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  ASSERT_EQ(::connect(pair.client, reinterpret_cast<const sockaddr*>(&address), size_of(address)), -1);
  ASSERT_EQ(errno, EINPROGRESS);
  ASSERT_EQ(state(pair.client), unsigned{TCP_SYN_SENT});
  checkpoint_here();
  EXPECT_EQ(state(pair.client), unsigned{TCP_SYN_SENT});
  const int nothing = 0;
  ASSERT_EQ(::setsockopt(listener, SOL_SOCKET, SO_DETACH_FILTER, &nothing, sizeof nothing), 0);
  pair.server = ::accept(listener, nullptr, nullptr);
  ASSERT_EQ(::fcntl(pair.client, F_SETFL, 0), 0);
  talk_both_ways(pair);
}

LIVE_TEST_WITH(Tcp, KeepsItsPlaceBesideTheListener, kKept) {
  sockaddr_storage address = any_loopback(AF_INET);
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), size_of(address)), 0);
  ASSERT_EQ(::listen(listener, 5), 0);
  socklen_t size = sizeof address;
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  Pair pairs[3];
  for (int round = 0; round < 3; ++round) {
    Pair& pair = pairs[round];
    pair.client = ::socket(AF_INET, SOCK_STREAM, 0);
    ASSERT_EQ(::connect(pair.client, reinterpret_cast<const sockaddr*>(&address), size_of(address)), 0)
        << "in round " << round;
    pair.server = ::accept(listener, nullptr, nullptr);
    checkpoint_here();
    for (int i = 0; i <= round; ++i) {
      talk_both_ways(pairs[i]);
    }
  }
}

LIVE_TEST_WITH(Tcp, KeepsAReadThatWaits, kKept) {
  const Pair pair = connected(AF_INET);
  std::atomic<pid_t> tid{0};
  char got = 0;
  ssize_t n = 0;
  std::thread reader([&] {
    tid = ::gettid();
    n = ::recv(pair.server, &got, 1, 0);
  });
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_recvfrom));
  checkpoint_here();
  EXPECT_EQ(::send(pair.client, "x", 1, 0), 1);
  reader.join();
  EXPECT_EQ(n, 1);
  EXPECT_EQ(got, 'x');
}

LIVE_TEST_WITH(Tcp, RefusesConnectionsThatWaitForAccept,
               {.dump = {"--tcp-established"}, .refused = "TCP connections wait for accept(2)"}) {
  sockaddr_storage address = any_loopback(AF_INET);
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), size_of(address)), 0);
  ASSERT_EQ(::listen(listener, 5), 0);
  socklen_t size = sizeof address;
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size), 0);
  Pair pair;
  pair.client = ::socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(::connect(pair.client, reinterpret_cast<const sockaddr*>(&address), size_of(address)), 0);
  checkpoint_here();
  pair.server = ::accept(listener, nullptr, nullptr);
  talk_both_ways(pair);
}

}  // namespace
}  // namespace ferry::live
