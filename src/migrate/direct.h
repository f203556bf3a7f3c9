// Connections between the two hosts beside the remote shell: who listens, who connects, and who may not.
//
// The destination listens on one port while the source, which was told of it through the remote shell,
// connects.  Whoever does not have the key of the move ends in the handshake, and delays nobody.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "migrate/link.h"
#include "migrate/tls.h"

namespace ferry::migrate {

inline constexpr unsigned kMostStreams = 16;

// The address of this host by which the other one has reached it, as sshd tells it (ssh(1), SSH_CONNECTION:
// "CLIENT PORT SERVER PORT").  Empty if that is not known.
std::string reached_address(const char* ssh_connection);

class DirectListener {
 public:
  // `port`: 0 for any that is free.
  static Result<DirectListener> open(const std::string& address, std::uint16_t port);
  [[nodiscard]] std::uint16_t port() const { return port_; }
  [[nodiscard]] const OneTimeKey& key() const { return key_; }

  // Waits for connections 0 to count-1; returns those that have come when all have, when the time is over,
  // or when `control` becomes readable (the source has seen how far it got) and nobody is in the middle of a
  // handshake.
  Result<std::vector<Link>> accept(unsigned count, int control, std::chrono::milliseconds limit,
                                   const std::string& peer);

 private:
  UniqueFd socket_;
  std::uint16_t port_ = 0;
  OneTimeKey key_;
};

// All `count` of them, or an error.  `limit`: for each.
Result<std::vector<Link>> connect_directly(const std::string& address, std::uint16_t port, const OneTimeKey& key,
                                           unsigned count, std::chrono::milliseconds limit, int interrupt,
                                           const std::string& peer);

}  // namespace ferry::migrate
