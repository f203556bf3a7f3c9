// Calls that the kernel remembers the caller of: SO_PEERCRED of unix(7).
//
// Whose socketpair(2), listen(2) or connect(2) it was stays visible at the other end, so a skeleton makes the
// call itself, with the user and group that it had then.  Where that process is not in the set any more, one
// of ours does it with the same user and group; its pid cannot be had again.
#pragma once

#include <sys/socket.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/sockets.pb.h"
#include "state/restore.h"

namespace ferry::state::unix_socket {

struct Caller {
  std::int32_t pid = 0;  // innermost; 0: none of the tree
  std::uint32_t uid = 0, gid = 0;
  auto operator<=>(const Caller&) const = default;
};
// Who made the other end of this socket what it is, if the image says so.
std::optional<Caller> caller_of_peer(const pb::UnixSkEntry& entry);

class OnBehalf {
 public:
  using Pair = std::pair<UniqueFd, UniqueFd>;
  // `count` pairs at once, because each call of a skeleton costs a stop.
  // `network`: the number of the network namespace that they are in.
  static Result<std::vector<Pair>> pairs(const Caller& caller, int type, std::uint32_t network, std::size_t count,
                                         RestoreContext& context);
  static Result<void> listen(const Caller& caller, int socket, int backlog, RestoreContext& context);
  // `directory`: a descriptor of what a relative name counts from; -1: the address is no path.
  static Result<void> connect(const Caller& caller, int socket, const sockaddr* address, socklen_t size, int directory,
                              RestoreContext& context);
};

}  // namespace ferry::state::unix_socket
