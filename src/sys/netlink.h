// Requests to the kernel over netlink(7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

// Attributes by type: struct nlattr's payload without its header.  Text that does not hold together
// is cut at the first bad length, so a caller misses an attribute rather than reads beyond.
std::map<std::uint16_t, std::span<const std::byte>> parse_attributes(std::span<const std::byte> bytes);

class Netlink {
 public:
  // In the network namespace of the calling thread.  `protocol`: NETLINK_SOCK_DIAG, NETLINK_ROUTE…
  static Result<Netlink> open(int protocol);

  // Sends one request and gives every message of the answer to `take` (its payload, behind nlmsghdr).
  // `flags`: NLM_F_DUMP, or 0 for a single answer.  Errors: what NLMSG_ERROR says, as errno.
  Result<void> request(std::uint16_t type, std::uint16_t flags, std::span<const std::byte> body,
                       std::string_view subject, const std::function<Result<void>(std::span<const std::byte>)>& take);

 private:
  explicit Netlink(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
  std::uint32_t sequence_ = 0;
};

}  // namespace ferry::sys
