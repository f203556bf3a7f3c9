#include "lazy/endpoint.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>

#include "lazy/encrypted.h"
#include "sys/file.h"

namespace ferry::lazy {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<AddressList> look_up(const PageServerPlace& place, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | flags;
  addrinfo* list = nullptr;
  const std::string port = std::to_string(place.port);
  const int failed =
      ::getaddrinfo(place.address.empty() ? nullptr : place.address.c_str(), port.c_str(), &hints, &list);
  if (failed != 0) {
    return fail(Kind::invalid, "{} is no address of a page server: {}", place.address, ::gai_strerror(failed));
  }
  return AddressList(list, &::freeaddrinfo);
}

// All of it is TCP's: a Unix socket, which somebody may give us, has neither delays nor lost peers.
void set_up(int socket) {
  const auto set = [socket](int level, int option, int value) {
    (void)::setsockopt(socket, level, option, &value, sizeof value);
  };
  // Commands are small and somebody waits for each: none is held back to be joined with the next.
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  // A program waits behind this connection: that it is dead is to be known in seconds (tcp(7)).
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 10'000);  // ms
}

// connect(2) with a deadline of our own: the kernel tries for minutes, and a program may wait behind this.  errno says
// what failed.
bool connect_in_time(int socket, const addrinfo& to) {
  constexpr time_t kTimeout_s = 5;
  // The time limit of sending is that of connecting as well (socket(7)).
  timeval limit{kTimeout_s, 0};
  (void)::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  int connected = 0;
  do {
    connected = ::connect(socket, to.ai_addr, to.ai_addrlen);
  } while (connected != 0 && errno == EINTR);
  limit = {};
  const int error = errno == EINPROGRESS ? ETIMEDOUT : errno;
  (void)::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  errno = error;
  return connected == 0;
}

Result<UniqueFd> take(const PageServerPlace& place) {
  FERRY_TRY(auto own, sys::duplicate(place.socket).during("taking the page server's socket"));
  set_up(own.get());
  return own;
}

Result<UniqueFd> reach(const PageServerPlace& place) {
  if (place.socket >= 0) {
    return take(place);
  }
  if (place.port == 0) {
    return fail(Kind::invalid, "the page server's port is missing: --port");
  }
  FERRY_TRY(const auto list, look_up(place, 0));
  Result<UniqueFd> last = fail(Kind::invalid, "{} has no address", place.address);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) {
    UniqueFd socket(::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (socket && connect_in_time(socket.get(), *at)) {
      set_up(socket.get());
      return socket;
    }
    last = sys_fail(fmt::format("connect({} port {})", place.address.empty() ? "loopback" : place.address, place.port));
  }
  return last;
}

}  // namespace

Result<UniqueFd> connect_to(const PageServerPlace& place) {
  FERRY_TRY(auto socket, reach(place));
  return place.tls ? encrypt_as_client(std::move(socket), *place.tls, place.address)
                   : Result<UniqueFd>(std::move(socket));
}

Result<UniqueFd> take_client(const PageServerPlace& place) {
  FERRY_TRY(auto socket, take(place));
  return place.tls ? encrypt_as_server(std::move(socket), *place.tls) : Result<UniqueFd>(std::move(socket));
}

Result<UniqueFd> listen_at(const PageServerPlace& place) {
  FERRY_TRY(const auto list, look_up(place, AI_PASSIVE));
  Result<UniqueFd> last = fail(Kind::invalid, "{} has no address", place.address);
  for (const addrinfo* at = list.get(); at != nullptr; at = at->ai_next) {
    UniqueFd socket(::socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    if (socket) {
      (void)::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    }
    if (socket && ::bind(socket.get(), at->ai_addr, at->ai_addrlen) == 0 && ::listen(socket.get(), 1) == 0) {
      return socket;
    }
    last =
        sys_fail(fmt::format("listen({} port {})", place.address.empty() ? "any address" : place.address, place.port));
  }
  return last;
}

Result<std::uint16_t> port_of(int listener) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return sys_fail("getsockname(page server)");
  }
  return address.ss_family == AF_INET6 ? ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port)
                                       : ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

Result<UniqueFd> accept_from(int listener, const std::optional<state::TlsFiles>& tls) {
  for (;;) {
    UniqueFd socket(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (socket) {
      set_up(socket.get());
      return tls ? encrypt_as_server(std::move(socket), *tls) : Result<UniqueFd>(std::move(socket));
    }
    // accept(2), "Error handling": what the connection died of before it was accepted is not the listener's.
    if (errno != EINTR && errno != ECONNABORTED && errno != EPROTO && errno != ENETDOWN && errno != EHOSTUNREACH) {
      return sys_fail("accept(page server)");
    }
  }
}

}  // namespace ferry::lazy
