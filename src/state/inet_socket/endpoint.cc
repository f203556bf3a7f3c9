#include <arpa/inet.h>

#include <algorithm>
#include <cstring>

#include "state/inet_socket/inet_socket.h"

namespace ferry::state::inet_socket {

Result<Endpoint> Endpoint::from(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address);
    return Endpoint(AF_INET, ntohs(in.sin_port), {in.sin_addr.s_addr}, 0);
  }
  if (address.ss_family == AF_INET6) {
    const auto& in6 = reinterpret_cast<const sockaddr_in6&>(address);
    std::vector<std::uint32_t> words(4);
    std::memcpy(words.data(), &in6.sin6_addr, 16);
    return Endpoint(AF_INET6, ntohs(in6.sin6_port), std::move(words), in6.sin6_scope_id);
  }
  return fail(Kind::corrupt, "an Internet socket has an address of family {}", address.ss_family);
}

Result<Endpoint> Endpoint::check(Endpoint endpoint, std::uint32_t port) {
  if (endpoint.family != AF_INET && endpoint.family != AF_INET6) {
    return fail(Kind::corrupt, "an Internet socket of family {}", endpoint.family);
  }
  const std::size_t wanted = endpoint.family == AF_INET ? 1 : 4;
  if (endpoint.words.empty()) {
    endpoint.words.resize(wanted, 0);
  }
  if (endpoint.words.size() != wanted || port > 0xffff) {
    return fail(Kind::corrupt, "an Internet socket has an address of {} words and port {}", endpoint.words.size(),
                port);
  }
  return endpoint;
}

sockaddr_storage Endpoint::to_sockaddr() const {
  sockaddr_storage out{};
  if (family == AF_INET) {
    auto& in = reinterpret_cast<sockaddr_in&>(out);
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    in.sin_addr.s_addr = words[0];
  } else {
    auto& in6 = reinterpret_cast<sockaddr_in6&>(out);
    in6.sin6_family = AF_INET6;
    in6.sin6_port = htons(port);
    std::memcpy(&in6.sin6_addr, words.data(), 16);
    in6.sin6_scope_id = scope;
  }
  return out;
}

bool Endpoint::is_any() const {
  return std::all_of(words.begin(), words.end(), [](std::uint32_t w) { return w == 0; });
}

std::string Endpoint::text() const {
  char buffer[INET6_ADDRSTRLEN] = {};
  ::inet_ntop(family, words.data(), buffer, sizeof buffer);
  return family == AF_INET ? fmt::format("{}:{}", buffer, port) : fmt::format("[{}]:{}", buffer, port);
}

}  // namespace ferry::state::inet_socket
