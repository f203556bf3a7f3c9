#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

constexpr int kHighGroup = RTNLGRP_NEXTHOP + 1;  // above those that bind(2) can name

int netlink(int protocol) {
  const int fd = ::socket(AF_NETLINK, SOCK_RAW, protocol);
  EXPECT_GE(fd, 0) << "protocol " << protocol;
  return fd;
}

void bind_to(int fd, std::uint32_t port, std::uint32_t groups) {
  sockaddr_nl own{};
  own.nl_family = AF_NETLINK;
  own.nl_pid = port;
  own.nl_groups = groups;
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof own), 0) << "port " << port;
}

sockaddr_nl name_of(int fd) {
  sockaddr_nl own{};
  socklen_t size = sizeof own;
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size), 0);
  return own;
}

bool is_member(int fd, unsigned group) {
  std::uint32_t words[8] = {};
  socklen_t size = sizeof words;
  EXPECT_EQ(::getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &size), 0);
  return (words[(group - 1) / 32] >> (group - 1) % 32 & 1) != 0;
}

// Asks for all links, and says whether the kernel answers this socket.
bool answers(int fd) {
  struct {
    nlmsghdr head;
    rtgenmsg body;
  } request{};
  request.head.nlmsg_len = NLMSG_LENGTH(sizeof request.body);
  request.head.nlmsg_type = RTM_GETLINK;
  request.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  request.body.rtgen_family = AF_UNSPEC;
  if (::send(fd, &request, request.head.nlmsg_len, 0) < 0) {
    return false;
  }
  std::vector<char> buffer(1 << 16);
  while (true) {
    const ssize_t got = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (got < static_cast<ssize_t>(sizeof(nlmsghdr))) {
      return false;
    }
    const auto type = reinterpret_cast<const nlmsghdr*>(buffer.data())->nlmsg_type;
    if (type == NLMSG_DONE || type == NLMSG_ERROR) {
      return type == NLMSG_DONE;
    }
  }
}

LIVE_TEST(NetlinkSocket, KeepsPortGroupsAndOptions) {
  const int route = netlink(NETLINK_ROUTE);
  bind_to(route, 0x12345, RTMGRP_LINK | RTMGRP_IPV4_ROUTE);
  ASSERT_EQ(::setsockopt(route, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &kHighGroup, sizeof kHighGroup), 0);
  const int on = 1;
  ASSERT_EQ(::setsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on), 0);
  const int unbound = netlink(NETLINK_ROUTE), generic = netlink(NETLINK_GENERIC), diag = netlink(NETLINK_SOCK_DIAG),
            events = netlink(NETLINK_KOBJECT_UEVENT);
  bind_to(generic, 0, 0);
  const std::uint32_t port = name_of(generic).nl_pid;
  ASSERT_NE(port, 0U);

  checkpoint_here();

  EXPECT_EQ(name_of(route).nl_pid, 0x12345U);
  EXPECT_EQ(name_of(route).nl_groups, static_cast<std::uint32_t>(RTMGRP_LINK | RTMGRP_IPV4_ROUTE));
  EXPECT_TRUE(is_member(route, kHighGroup));
  EXPECT_FALSE(is_member(route, kHighGroup + 1));
  int value = 0;
  socklen_t size = sizeof value;
  EXPECT_EQ(::getsockopt(route, SOL_NETLINK, NETLINK_EXT_ACK, &value, &size), 0);
  EXPECT_EQ(value, 1);
  EXPECT_TRUE(answers(unbound));
  EXPECT_EQ(name_of(generic).nl_pid, port);
  EXPECT_EQ(name_of(events).nl_pid, 0U);
  size = sizeof value;
  EXPECT_EQ(::getsockopt(diag, SOL_SOCKET, SO_PROTOCOL, &value, &size), 0);
  EXPECT_EQ(value, NETLINK_SOCK_DIAG);
}

LIVE_TEST(NetlinkSocket, StaysConnected) {
  const int receiver = netlink(NETLINK_USERSOCK), sender = netlink(NETLINK_USERSOCK);
  bind_to(receiver, 0x23456, 0);
  const sockaddr_nl to = name_of(receiver);
  ASSERT_EQ(::connect(sender, reinterpret_cast<const sockaddr*>(&to), sizeof to), 0);

  checkpoint_here();

  ASSERT_EQ(::send(sender, "hello", 5, 0), 5) << std::system_category().message(errno);
  char got[8] = {};
  EXPECT_EQ(::recv(receiver, got, sizeof got, MSG_DONTWAIT), 5);
  EXPECT_STREQ(got, "hello");
}

LIVE_TEST_WITH(NetlinkSocket, IsRefusedWithUnreadMessages, {.refused = "it has messages that were not read yet"}) {
  const int receiver = netlink(NETLINK_USERSOCK), sender = netlink(NETLINK_USERSOCK);
  bind_to(receiver, 0x34567, 0);
  const sockaddr_nl to = name_of(receiver);
  ASSERT_EQ(::sendto(sender, "hello", 5, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to), 5);
  checkpoint_here();
  char got[8] = {};
  EXPECT_EQ(::recv(receiver, got, sizeof got, MSG_DONTWAIT), 5);
}

}  // namespace
}  // namespace ferry::live
