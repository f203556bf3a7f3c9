// What a Unix socket's receive queue holds, and putting it there again.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::state::unix_socket {

struct Packet {
  std::string bytes;
  std::vector<UniqueFd> descriptors;  // in flight with it (unix(7), SCM_RIGHTS)
};
// Everything that waits to be read, without taking it: MSG_PEEK with SO_PEEK_OFF (socket(7)), which is
// set back afterwards.  `type`: SOCK_*.  Of a stream, neighbours without descriptors come as one packet.
Result<std::vector<Packet>> peek(int fd, int type, std::string_view subject);

// Sends one packet; never waits.  `descriptors` are numbers of ours.
Result<void> send(int fd, std::string_view bytes, const std::vector<int>& descriptors, bool stream,
                  std::string_view subject);

}  // namespace ferry::state::unix_socket
