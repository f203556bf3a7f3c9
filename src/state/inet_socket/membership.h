// Multicast groups that sockets have joined: ip(7), ipv6(7), RFC 3678.
//
// No call lists a socket's groups, but one tells the sources of a given group, and fails if it was not joined.
// So every group that an interface listens to (/proc/PID/net/igmp and igmp6) is asked for.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "image/proto/sockets.pb.h"
#include "state/inside.h"

namespace ferry::state::inet_socket {

struct Group {
  std::uint32_t interface_index = 0;
  std::string interface_name;
  int family = 0;
  std::string address;  // 4 or 16 bytes
  bool operator==(const Group&) const = default;
};

// Without those that every interface is in by itself.
std::vector<Group> parse_igmp(std::string_view text);
std::vector<Group> parse_igmp6(std::string_view text);

class MembershipReader {
 public:
  // `proc`: /proc/PID of a task in the sockets' network namespace.
  Result<void> collect(int fd, int proc, const std::string& subject, pb::InetSkEntry& out);

 private:
  std::optional<std::vector<Group>> groups_;
};

Result<void> restore_memberships(int fd, const pb::InetSkEntry& entry, const std::string& subject, Inside& inside);

}  // namespace ferry::state::inet_socket
