// Internet sockets: tcp(7), udp(7), raw(7), over ip(7) and ipv6(7).
//
// A connection is carried over with --tcp-established (state/tcp), becomes a socket that is closed on both
// sides with --tcp-close, and is refused by name otherwise.
#pragma once

#include <netinet/in.h>

#include <memory>
#include <string>

#include "state/file_kind.h"
#include "state/network_lock/network_lock.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_inet_socket_kind();

namespace inet_socket {

// An address with its port as the image holds it, and as the kernel wants it.
struct Endpoint {
  int family = AF_INET;
  std::uint16_t port = 0;            // host order
  std::vector<std::uint32_t> words;  // one or four, bytes in network order
  std::uint32_t scope = 0;           // interface index of a link-local address

  static Result<Endpoint> from(const sockaddr_storage& address);
  template <class Words>
  static Result<Endpoint> from_image(std::uint32_t family, std::uint32_t port, const Words& words) {
    return check({static_cast<int>(family), static_cast<std::uint16_t>(port), {words.begin(), words.end()}, 0}, port);
  }
  // Bytes of the structure for bind(2) and connect(2); its length by family.
  [[nodiscard]] sockaddr_storage to_sockaddr() const;
  [[nodiscard]] socklen_t size() const { return family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6); }
  [[nodiscard]] bool is_any() const;
  [[nodiscard]] std::string text() const;  // "10.0.0.2:80", "[::1]:80"

 private:
  static Result<Endpoint> check(Endpoint endpoint, std::uint32_t port);

 public:
  Endpoint() = default;
  Endpoint(int f, std::uint16_t p, std::vector<std::uint32_t> w, std::uint32_t s)
      : family(f), port(p), words(std::move(w)), scope(s) {}
};

// Whether a set has the entry as a TCP connection that goes on.
bool is_connection(const pb::InetSkEntry& entry);
// Keeps packets of the set's connections away until they are restored; nothing if it has none.
Result<network_lock::Locks> lock_for_restore(RestoreContext& context);
// What a lock has to know of a connection.
Result<network_lock::Connection> connection_of(const pb::InetSkEntry& entry);

// Options of the levels below SOL_SOCKET.
Result<void> collect_ip_options(int fd, pb::InetSkEntry& out);
Result<void> restore_ip_options(int fd, const pb::InetSkEntry& entry);
Result<void> collect_tcp_options(int fd, const std::string& subject, pb::TcpOptsEntry& out);
Result<void> restore_tcp_options(int fd, const pb::TcpOptsEntry& entry);

}  // namespace inet_socket
}  // namespace ferry::state
