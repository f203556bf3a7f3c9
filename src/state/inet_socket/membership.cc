#include "state/inet_socket/membership.h"

#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>

#include "sys/file.h"
#include "sys/net_namespace.h"

namespace ferry::state::inet_socket {
namespace {

std::vector<std::string_view> words(std::string_view line) {
  std::vector<std::string_view> out;
  while (true) {
    const std::size_t begin = line.find_first_not_of(" \t");
    if (begin == std::string_view::npos) {
      return out;
    }
    const std::size_t end = std::min(line.find_first_of(" \t", begin), line.size());
    out.push_back(line.substr(begin, end - begin));
    line.remove_prefix(end);
  }
}

template <class Work>
void each_line(std::string_view text, Work work) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    work(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

template <class Number>
std::optional<Number> number(std::string_view text, int base) {
  Number out{};
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out, base);
  return code == std::errc{} && end == text.data() + text.size() ? std::optional<Number>(out) : std::nullopt;
}

sockaddr_storage socket_address(int family, std::string_view bytes) {
  sockaddr_storage out{};
  out.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET) {
    std::memcpy(&reinterpret_cast<sockaddr_in&>(out).sin_addr, bytes.data(), std::min<std::size_t>(4, bytes.size()));
  } else {
    std::memcpy(&reinterpret_cast<sockaddr_in6&>(out).sin6_addr, bytes.data(), std::min<std::size_t>(16, bytes.size()));
  }
  return out;
}

std::string address_bytes(const sockaddr_storage& a) {
  return a.ss_family == AF_INET
             ? std::string(reinterpret_cast<const char*>(&reinterpret_cast<const sockaddr_in&>(a).sin_addr), 4)
             : std::string(reinterpret_cast<const char*>(&reinterpret_cast<const sockaddr_in6&>(a).sin6_addr), 16);
}

int level_of(int family) { return family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6; }

// What struct group_filter has before its list of sources, which is as long as it is told to be.
struct FilterHead {
  std::uint32_t interface_index = 0;
  std::uint32_t pad = 0;
  sockaddr_storage group{};
  std::uint32_t mode = 0, count = 0;
};
static_assert(sizeof(FilterHead) == GROUP_FILTER_SIZE(0));

struct Sources {
  bool include = false;
  std::vector<std::string> addresses;  // 4 or 16 bytes
};

// Nothing if the socket is not in the group.
Result<std::optional<Sources>> sources_of(int fd, const Group& group, const std::string& subject) {
  FilterHead head;
  head.interface_index = group.interface_index;
  head.group = socket_address(group.family, group.address);
  std::size_t room = 16;  // the default of igmp_max_msf is 10
  for (;;) {
    head.count = static_cast<std::uint32_t>(room);
    std::vector<char> bytes(GROUP_FILTER_SIZE(room));
    std::memcpy(bytes.data(), &head, sizeof head);
    auto size = static_cast<socklen_t>(bytes.size());
    if (::getsockopt(fd, level_of(group.family), MCAST_MSFILTER, bytes.data(), &size) != 0) {
      if (errno == EADDRNOTAVAIL || errno == EOPNOTSUPP || errno == ENOPROTOOPT) {
        return std::nullopt;
      }
      return sys_fail(fmt::format("getsockopt({}, MCAST_MSFILTER)", subject));
    }
    FilterHead answer;
    std::memcpy(&answer, bytes.data(), sizeof answer);
    // The kernel says how many there are, whatever there was room for.
    if (answer.count > room) {
      room = answer.count;
      continue;
    }
    Sources out{answer.mode == MCAST_INCLUDE, {}};
    for (std::size_t i = 0; i < answer.count; ++i) {
      sockaddr_storage source{};
      std::memcpy(&source, bytes.data() + GROUP_FILTER_SIZE(i), sizeof source);
      out.addresses.push_back(address_bytes(source));
    }
    return out;
  }
}

Result<void> join(int fd, std::uint32_t interface_index, const pb::FerryMembership& kept, const std::string& subject) {
  const int family = kept.group().size() == 4 ? AF_INET : AF_INET6;
  const sockaddr_storage group = socket_address(family, kept.group());
  // Joined means: from everybody.  Who joins for a source is in the group for that one.
  if (!kept.include()) {
    group_req request{};
    request.gr_interface = interface_index;
    request.gr_group = group;
    if (::setsockopt(fd, level_of(family), MCAST_JOIN_GROUP, &request, sizeof request) != 0) {
      return sys_fail(fmt::format("setsockopt({}, MCAST_JOIN_GROUP on {})", subject, kept.interface()));
    }
  }
  // One by one: how long a list may be that is set at once, net.core.optmem_max limits further.
  for (const std::string& source : kept.sources()) {
    group_source_req request{};
    request.gsr_interface = interface_index;
    request.gsr_group = group;
    request.gsr_source = socket_address(family, source);
    const int option = kept.include() ? MCAST_JOIN_SOURCE_GROUP : MCAST_BLOCK_SOURCE;
    if (::setsockopt(fd, level_of(family), option, &request, sizeof request) != 0) {
      return sys_fail(fmt::format("setsockopt({}, {} on {})", subject,
                                  kept.include() ? "MCAST_JOIN_SOURCE_GROUP" : "MCAST_BLOCK_SOURCE", kept.interface()));
    }
  }
  return {};
}

}  // namespace

std::vector<Group> parse_igmp(std::string_view text) {
  std::vector<Group> out;
  std::uint32_t index = 0;
  std::string name;
  each_line(text, [&](std::string_view line) {
    const auto w = words(line);
    if (!line.starts_with('\t') && w.size() >= 2) {
      index = number<std::uint32_t>(w[0], 10).value_or(0);
      name = std::string(w[1].substr(0, w[1].find(':')));
    } else if (line.starts_with('\t') && !w.empty() && index != 0) {
      // The word as the processor sees it in memory, whose bytes are in network order.
      const auto group = number<std::uint32_t>(w[0], 16);
      if (group && *group != htonl(INADDR_ALLHOSTS_GROUP)) {
        out.push_back({index, name, AF_INET, std::string(reinterpret_cast<const char*>(&*group), sizeof *group)});
      }
    }
  });
  return out;
}

std::vector<Group> parse_igmp6(std::string_view text) {
  std::vector<Group> out;
  each_line(text, [&](std::string_view line) {
    const auto w = words(line);
    if (w.size() < 3 || w[2].size() != 32) {
      return;
    }
    std::string address;
    for (std::size_t i = 0; i < 32; i += 2) {
      address += static_cast<char>(number<std::uint8_t>(w[2].substr(i, 2), 16).value_or(0));
    }
    const bool all_nodes = w[2] == "ff020000000000000000000000000001" || w[2] == "ff010000000000000000000000000001";
    if (!all_nodes) {
      out.push_back({number<std::uint32_t>(w[0], 10).value_or(0), std::string(w[1]), AF_INET6, std::move(address)});
    }
  });
  return out;
}

Result<std::vector<Group>> MembershipReader::groups_in(const Networks::Place& network) {
  FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(network.ns.get()));
  FERRY_TRY(const std::string igmp, sys::read_file("/proc/thread-self/net/igmp"));
  std::vector<Group> out = parse_igmp(igmp);
  if (const auto igmp6 = sys::read_file("/proc/thread-self/net/igmp6"); igmp6.has_value()) {  // missing without IPv6
    const auto more = parse_igmp6(*igmp6);
    out.insert(out.end(), more.begin(), more.end());
  }
  return out;
}

Result<void> MembershipReader::collect(int fd, const Networks::Place& network, const std::string& subject,
                                       pb::InetSkEntry& out) {
  auto known = groups_.find(network.id);
  if (known == groups_.end()) {
    FERRY_TRY(auto groups, groups_in(network));
    known = groups_.emplace(network.id, std::move(groups)).first;
  }
  for (const Group& group : known->second) {
    if (group.family == AF_INET6 && out.family() == AF_INET) {
      continue;
    }
    FERRY_TRY(const auto sources, sources_of(fd, group, subject));
    if (!sources.has_value()) {
      continue;
    }
    pb::FerryMembership& kept = *out.add_ferry_memberships();
    kept.set_interface(group.interface_name);
    kept.set_group(group.address);
    kept.set_include(sources->include);
    for (const std::string& address : sources->addresses) {
      kept.add_sources(address);
    }
  }
  return {};
}

Result<void> restore_memberships(int fd, const pb::InetSkEntry& entry, const std::string& subject, Inside& inside) {
  for (const pb::FerryMembership& kept : entry.ferry_memberships()) {
    if (kept.group().size() != 4 && kept.group().size() != 16) {
      return fail(Kind::corrupt, "{}: a multicast group of {} bytes", subject, kept.group().size());
    }
    FERRY_TRY(const std::uint32_t index, inside.get<std::uint32_t>([&]() -> Result<std::uint32_t> {
      const unsigned found = ::if_nametoindex(kept.interface().c_str());
      if (found == 0) {
        return sys_fail(fmt::format("if_nametoindex({}), where {} is in a multicast group", kept.interface(), subject));
      }
      return found;
    }));
    FERRY_CHECK(join(fd, index, kept, subject));
  }
  return {};
}

}  // namespace ferry::state::inet_socket
