// What a Unix socket's receive queue holds, and putting it there again.
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::state::unix_socket {

struct Packet {
  std::string bytes;
  std::vector<UniqueFd> descriptors;  // in flight with it (unix(7), SCM_RIGHTS)
  std::string sender;                 // of a datagram: the name of the socket that it came from
  std::optional<ucred> credentials;   // SCM_CREDENTIALS, of a socket with SO_PASSCRED
};
// Everything that waits to be read, without taking it: MSG_PEEK with SO_PEEK_OFF (socket(7)), which is
// set back afterwards.  `type`: SOCK_*.  Of a stream, neighbours without descriptors come as one packet.
Result<std::vector<Packet>> peek(int fd, int type, std::string_view subject);

// What is to be sent, and how.
struct Message {
  std::string_view bytes;
  std::vector<int> descriptors = {};                // numbers of ours
  std::optional<ucred> credentials = std::nullopt;  // of somebody else: takes privileges
  const sockaddr* to = nullptr;                     // of a datagram: not to the connected one
  socklen_t to_size = 0;
};
// Sends one packet; never waits.
Result<void> send(int fd, const Message& what, bool stream, std::string_view subject);

}  // namespace ferry::state::unix_socket
