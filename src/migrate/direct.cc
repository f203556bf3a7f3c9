#include "migrate/direct.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <sstream>

#include "base/log.h"

namespace ferry::migrate {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// A stranger may knock, but not for long, and not with many connections at once.
constexpr milliseconds kHandshakeLimit(3000);
constexpr std::size_t kMostHandshakes = 64;
// Not sooner than Link gives up: the destination may be busy with what it has, and take nothing for a while.
constexpr unsigned kLostAfterMs = 120'000;

struct FreeAddresses {
  void operator()(addrinfo* list) const { ::freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

Result<Addresses> parse_address(const std::string& address, std::uint16_t port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int wrong = ::getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found); wrong != 0) {
    return fail(Kind::unsupported, "{} is no address that can be used here: {}", address, ::gai_strerror(wrong));
  }
  return Addresses(found);
}

int left_until(Clock::time_point end) {
  const auto left = std::chrono::ceil<milliseconds>(end - Clock::now()).count();
  return static_cast<int>(std::clamp<long long>(left, 0, 1 << 30));
}

// What is sent is wanted at once, and a broken way is noticed.
void tune(int socket) {
  const int yes = 1;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  const unsigned lost = kLostAfterMs;
  ::setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &lost, sizeof lost);
}

Result<UniqueFd> connect_one(const addrinfo& to, Clock::time_point end, int interrupt) {
  UniqueFd out(::socket(to.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!out) {
    return sys_fail("socket");
  }
  tune(out.get());
  if (::connect(out.get(), to.ai_addr, to.ai_addrlen) == 0) {
    return out;
  }
  if (errno != EINPROGRESS) {
    return sys_fail("connect");
  }
  std::array<pollfd, 2> wanted{pollfd{out.get(), POLLOUT, 0}, pollfd{interrupt, POLLIN, 0}};
  for (;;) {
    const int ready = ::poll(wanted.data(), wanted.size(), left_until(end));
    if (ready < 0 && errno == EINTR) {
      continue;
    }
    if (ready > 0 && wanted[1].revents != 0) {
      return fail(Kind::invalid, "interrupted");
    }
    if (ready <= 0) {
      return fail(Kind::gone, "nobody answers");
    }
    break;
  }
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(out.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
    return sys_fail(error == 0 ? errno : error, "connect");
  }
  return out;
}

Result<void> finish_handshake(TlsTransport& tls, Clock::time_point end, int interrupt) {
  for (;;) {
    FERRY_TRY(const bool done, tls.shake_hands());
    if (done) {
      return {};
    }
    const Transport::Wait wait = tls.to_read();
    std::array<pollfd, 2> wanted{pollfd{wait.fd, wait.events, 0}, pollfd{interrupt, POLLIN, 0}};
    const int ready = ::poll(wanted.data(), wanted.size(), left_until(end));
    if (ready > 0 && wanted[1].revents != 0) {
      return fail(Kind::invalid, "interrupted");
    }
    if (ready == 0) {
      return fail(Kind::gone, "the handshake of a direct connection takes too long");
    }
  }
}

struct Newcomer {
  std::unique_ptr<TlsTransport> tls;
  Clock::time_point until;
  enum class State { waiting, ready, lost } state = State::waiting;
};

void go_on(Newcomer& one) {
  const auto done = one.tls->shake_hands();
  if (!done) {
    log::info("a direct connection was refused: {}", done.error().message());
    one.state = Newcomer::State::lost;
  } else if (*done) {
    one.state = Newcomer::State::ready;
  } else if (Clock::now() >= one.until) {
    one.state = Newcomer::State::lost;
  }
}

}  // namespace

std::string reached_address(const char* ssh_connection) {
  std::istringstream words(ssh_connection == nullptr ? "" : ssh_connection);
  std::string client, client_port, server;
  words >> client >> client_port >> server;
  return server;
}

Result<DirectListener> DirectListener::open(const std::string& address, std::uint16_t port) {
  FERRY_TRY(const Addresses at, parse_address(address, port));
  DirectListener out;
  out.socket_ = UniqueFd(::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!out.socket_) {
    return sys_fail("socket");
  }
  const int yes = 1;
  ::setsockopt(out.socket_.get(), SOL_SOCKET, SO_REUSEADDR, &yes,
               sizeof yes);  // a fixed port may have been used just now
  if (::bind(out.socket_.get(), at->ai_addr, at->ai_addrlen) != 0) {
    return sys_fail(fmt::format("bind({}, port {})", address, port));
  }
  if (::listen(out.socket_.get(), static_cast<int>(kMostStreams)) != 0) {
    return sys_fail("listen");
  }
  sockaddr_storage name{};
  socklen_t size = sizeof name;
  if (::getsockname(out.socket_.get(), reinterpret_cast<sockaddr*>(&name), &size) != 0) {
    return sys_fail("getsockname");
  }
  out.port_ = ntohs(name.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(name).sin6_port
                                               : reinterpret_cast<const sockaddr_in&>(name).sin_port);
  FERRY_TRY(out.key_, OneTimeKey::make());
  return out;
}

Result<std::vector<Link>> DirectListener::accept(unsigned count, int control, milliseconds limit,
                                                 const std::string& peer) {
  const auto end = Clock::now() + limit;
  std::vector<std::unique_ptr<TlsTransport>> found(count);
  unsigned missing = count;
  std::vector<Newcomer> newcomers;
  bool told = false;
  while (missing > 0 && Clock::now() < end && !(told && newcomers.empty())) {
    std::vector<pollfd> wanted{{socket_.get(), POLLIN, 0}, {told ? -1 : control, POLLIN, 0}};
    auto until = end;
    for (const Newcomer& one : newcomers) {
      const Transport::Wait wait = one.tls->to_read();
      wanted.push_back({wait.fd, wait.events, 0});
      until = std::min(until, one.until);
    }
    if (::poll(wanted.data(), wanted.size(), left_until(until)) < 0 && errno != EINTR) {
      return sys_fail("poll(direct connections)");
    }
    while (newcomers.size() < kMostHandshakes) {
      UniqueFd socket(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!socket) {
        break;
      }
      tune(socket.get());
      FERRY_TRY(auto tls, TlsTransport::server(std::move(socket), key_));
      newcomers.push_back({std::move(tls), Clock::now() + kHandshakeLimit});
    }
    for (Newcomer& one : newcomers) {
      go_on(one);
      if (one.state == Newcomer::State::ready && one.tls->number() < count && found[one.tls->number()] == nullptr) {
        found[one.tls->number()] = std::move(one.tls);
        --missing;
      }
    }
    std::erase_if(newcomers, [](const Newcomer& one) { return one.state != Newcomer::State::waiting; });
    told = told || wanted[1].revents != 0;
  }
  std::vector<Link> out;
  for (auto& tls : found) {
    if (tls != nullptr) {
      out.emplace_back(std::move(tls), -1, peer);
    }
  }
  return out;
}

Result<std::vector<Link>> connect_directly(const std::string& address, std::uint16_t port, const OneTimeKey& key,
                                           unsigned count, milliseconds limit, int interrupt, const std::string& peer) {
  FERRY_TRY(const Addresses to, parse_address(address, port));
  std::vector<Link> out;
  for (unsigned number = 0; number < count; ++number) {
    const auto end = Clock::now() + limit;
    FERRY_TRY(UniqueFd socket, connect_one(*to, end, interrupt).during("connecting to {} port {}", address, port));
    FERRY_TRY(auto tls, TlsTransport::client(std::move(socket), key, number));
    FERRY_CHECK(finish_handshake(*tls, end, interrupt).during("connecting to {} port {}", address, port));
    out.emplace_back(std::move(tls), interrupt, peer);
  }
  return out;
}

}  // namespace ferry::migrate
