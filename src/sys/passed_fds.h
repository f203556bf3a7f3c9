// Descriptors that go along with bytes through a Unix socket.
// Source: unix(7), SCM_RIGHTS.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

inline constexpr std::size_t kMostPassedFds = 2;  // in one message, of ours

// Returns how many of the bytes went; at least one of them, or no descriptor would.  `fds`: at most kMostPassedFds;
// stay the caller's.  `what` names the socket in errors.  Raises no SIGPIPE.
Result<std::size_t> send_with_fds(int socket, std::span<const std::byte> bytes, std::span<const int> fds,
                                  std::string_view what);

struct Passed {
  std::size_t bytes = 0;  // 0: the other side has hung up
  std::vector<UniqueFd> fds;
};
// One message of a packet socket, or what is there of a stream.  More than kMostPassedFds are closed by the kernel.
Result<Passed> receive_with_fds(int socket, std::span<std::byte> room, std::string_view what);

}  // namespace ferry::sys
