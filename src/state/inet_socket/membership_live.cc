// Multicast groups and their sources, ip(7), ipv6(7), RFC 3678.
#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

int bound(int family) {
  const int fd = ::socket(family, SOCK_DGRAM, 0);
  sockaddr_storage any{};
  any.ss_family = static_cast<sa_family_t>(family);
  const socklen_t size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&any), size), 0) << std::strerror(errno);
  return fd;
}

unsigned interface_index() { return ::if_nametoindex("lo"); }

sockaddr_storage group_address(int family, const char* text) {
  sockaddr_storage out{};
  out.ss_family = static_cast<sa_family_t>(family);
  void* at = family == AF_INET ? static_cast<void*>(&reinterpret_cast<sockaddr_in&>(out).sin_addr)
                               : static_cast<void*>(&reinterpret_cast<sockaddr_in6&>(out).sin6_addr);
  EXPECT_EQ(::inet_pton(family, text, at), 1);
  return out;
}

// Mode and number of sources, or the error.
std::string membership(int fd, int family, const char* group) {
  struct {
    group_filter filter;
    sockaddr_storage more[8];
  } asked{};
  asked.filter.gf_interface = interface_index();
  asked.filter.gf_group = group_address(family, group);
  asked.filter.gf_numsrc = 8;
  socklen_t size = sizeof asked;
  if (::getsockopt(fd, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, MCAST_MSFILTER, &asked, &size) != 0) {
    return std::strerror(errno);
  }
  return (asked.filter.gf_fmode == MCAST_INCLUDE ? "include " : "exclude ") + std::to_string(asked.filter.gf_numsrc);
}

LIVE_TEST(InetMulticast, StaysInItsGroups) {
  const int fd = bound(AF_INET), other = bound(AF_INET);
  group_req join{};
  join.gr_interface = interface_index();
  join.gr_group = group_address(AF_INET, "239.1.2.3");
  ASSERT_EQ(::setsockopt(fd, IPPROTO_IP, MCAST_JOIN_GROUP, &join, sizeof join), 0) << std::strerror(errno);
  group_source_req source{};
  source.gsr_interface = join.gr_interface;
  source.gsr_group = group_address(AF_INET, "232.1.2.3");
  source.gsr_source = group_address(AF_INET, "127.0.0.1");
  ASSERT_EQ(::setsockopt(fd, IPPROTO_IP, MCAST_JOIN_SOURCE_GROUP, &source, sizeof source), 0) << std::strerror(errno);
  checkpoint_here();
  EXPECT_EQ(membership(fd, AF_INET, "239.1.2.3"), "exclude 0");
  EXPECT_EQ(membership(fd, AF_INET, "232.1.2.3"), "include 1");
  EXPECT_EQ(membership(other, AF_INET, "239.1.2.3"), "Cannot assign requested address");
}

LIVE_TEST(InetMulticast, StaysInItsIpv6Groups) {
  const int fd = bound(AF_INET6);
  group_req join{};
  join.gr_interface = interface_index();
  join.gr_group = group_address(AF_INET6, "ff15::77");
  ASSERT_EQ(::setsockopt(fd, IPPROTO_IPV6, MCAST_JOIN_GROUP, &join, sizeof join), 0) << std::strerror(errno);
  checkpoint_here();
  EXPECT_EQ(membership(fd, AF_INET6, "ff15::77"), "exclude 0");
}

// The mode of a membership, and its sources.
std::multiset<std::string> sources_of(int fd, int family, const char* group) {
  constexpr std::size_t kRoom = 1000;
  std::vector<char> bytes(GROUP_FILTER_SIZE(kRoom));
  auto* const asked = reinterpret_cast<group_filter*>(bytes.data());
  asked->gf_interface = interface_index();
  asked->gf_group = group_address(family, group);
  asked->gf_numsrc = kRoom;
  auto size = static_cast<socklen_t>(bytes.size());
  EXPECT_EQ(::getsockopt(fd, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, MCAST_MSFILTER, asked, &size), 0);
  std::multiset<std::string> out{asked->gf_fmode == MCAST_INCLUDE ? "include" : "exclude"};
  for (std::size_t i = 0; i < std::min<std::size_t>(asked->gf_numsrc, kRoom); ++i) {
    const sockaddr_storage& source = asked->gf_slist[i];
    char text[INET6_ADDRSTRLEN] = {};
    const void* const at = family == AF_INET
                               ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in&>(source).sin_addr)
                               : static_cast<const void*>(&reinterpret_cast<const sockaddr_in6&>(source).sin6_addr);
    out.insert(::inet_ntop(family, at, text, sizeof text));
  }
  return out;
}

void change_source(int fd, int family, int option, const char* group, const std::string& source) {
  group_source_req request{};
  request.gsr_interface = interface_index();
  request.gsr_group = group_address(family, group);
  request.gsr_source = group_address(family, source.c_str());
  ASSERT_EQ(::setsockopt(fd, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, option, &request, sizeof request), 0)
      << group << " " << source << ": " << std::strerror(errno);
}

void join_group(int fd, int family, const char* group) {
  group_req request{};
  request.gr_interface = interface_index();
  request.gr_group = group_address(family, group);
  ASSERT_EQ(::setsockopt(fd, family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6, MCAST_JOIN_GROUP, &request, sizeof request),
            0);
}

LIVE_TEST(InetMulticast, HearsWhomItHasNotExcluded) {
  constexpr const char* kGroup = "239.1.2.5";
  const int receiver = bound(AF_INET);
  sockaddr_in at{};
  socklen_t size = sizeof at;
  ASSERT_EQ(::getsockname(receiver, reinterpret_cast<sockaddr*>(&at), &size), 0);
  join_group(receiver, AF_INET, kGroup);
  change_source(receiver, AF_INET, MCAST_BLOCK_SOURCE, kGroup, "127.0.0.2");
  change_source(receiver, AF_INET, MCAST_BLOCK_SOURCE, kGroup, "127.0.0.4");
  const auto hears = [&](const char* source) {
    const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_storage own = group_address(AF_INET, source), to = group_address(AF_INET, kGroup);
    reinterpret_cast<sockaddr_in&>(to).sin_port = at.sin_port;
    const ip_mreqn through{{}, {}, static_cast<int>(interface_index())};
    EXPECT_EQ(::setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &through, sizeof through), 0);
    EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof(sockaddr_in)), 0);
    EXPECT_EQ(::sendto(fd, source, std::strlen(source), 0, reinterpret_cast<const sockaddr*>(&to), sizeof(sockaddr_in)),
              static_cast<ssize_t>(std::strlen(source)));
    ::close(fd);
    // Over the loopback interface what was sent has arrived, or never will.
    char got[32] = {};
    return ::recv(receiver, got, sizeof got, MSG_DONTWAIT) > 0;
  };
  EXPECT_TRUE(hears("127.0.0.3"));
  EXPECT_FALSE(hears("127.0.0.2"));
  checkpoint_here();
  EXPECT_TRUE(hears("127.0.0.3"));
  EXPECT_FALSE(hears("127.0.0.2"));
  EXPECT_FALSE(hears("127.0.0.4"));
}

LIVE_TEST(InetMulticast, KeepsManySources) {
  ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
  std::ofstream("/proc/sys/net/ipv4/igmp_max_msf") << 1000 << std::flush;
  const int fd = ::socket(AF_INET, SOCK_DGRAM, 0);
  for (int i = 0; i < 700; ++i) {
    const std::string source = "10.9." + std::to_string(i / 100) + "." + std::to_string(i % 100 + 1);
    change_source(fd, AF_INET, MCAST_JOIN_SOURCE_GROUP, "232.1.2.3", source);
  }
  const auto before = sources_of(fd, AF_INET, "232.1.2.3");
  ASSERT_EQ(before.size(), 701U);
  checkpoint_here();
  EXPECT_EQ(sources_of(fd, AF_INET, "232.1.2.3"), before);
}

LIVE_TEST(InetMulticast, KeepsIpv6Sources) {
  const int fd = bound(AF_INET6);
  join_group(fd, AF_INET6, "ff15::78");
  change_source(fd, AF_INET6, MCAST_BLOCK_SOURCE, "ff15::78", "fd00::2");
  change_source(fd, AF_INET6, MCAST_BLOCK_SOURCE, "ff15::78", "fd00::1");
  change_source(fd, AF_INET6, MCAST_JOIN_SOURCE_GROUP, "ff35::79", "fd00::3");
  checkpoint_here();
  EXPECT_EQ(sources_of(fd, AF_INET6, "ff15::78"), (std::multiset<std::string>{"exclude", "fd00::1", "fd00::2"}));
  EXPECT_EQ(sources_of(fd, AF_INET6, "ff35::79"), (std::multiset<std::string>{"include", "fd00::3"}));
}

}  // namespace
}  // namespace ferry::live
