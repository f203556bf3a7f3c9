// Multicast groups that sockets have joined: ip(7), ipv6(7), RFC 3678.
//
// No call lists a socket's groups, but one tells the sources of a given group, and fails if it was not joined.
// So every group that an interface listens to (/proc/thread-self/net/igmp and igmp6) is asked for.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "image/proto/sockets.pb.h"
#include "state/inside.h"
#include "state/nsids/networks.h"

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
  Result<void> collect(int fd, const Networks::Place& network, const std::string& subject, pb::InetSkEntry& out);

 private:
  static Result<std::vector<Group>> groups_in(const Networks::Place& network);

  std::map<std::uint32_t, std::vector<Group>> groups_;  // by network namespace
};

Result<void> restore_memberships(int fd, const pb::InetSkEntry& entry, const std::string& subject, Inside& inside);

}  // namespace ferry::state::inet_socket
