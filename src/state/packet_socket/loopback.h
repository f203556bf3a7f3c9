// The loopback interface of the network that a socket is in.
#pragma once

#include <cstddef>

#include "base/error.h"

namespace ferry::state::packet_socket {

struct Loopback {
  int index = 0;
  std::size_t mtu = 0;
  bool is_up = false;
  static Result<Loopback> of(int socket);
};

}  // namespace ferry::state::packet_socket
