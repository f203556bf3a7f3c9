#include "sys/netlink.h"

#include <gtest/gtest.h>
#include <linux/unix_diag.h>

#include <cstring>

#include "sys/sock_diag.h"

namespace ferry::sys {
namespace {

void put(std::vector<std::byte>& out, const void* from, std::size_t size) {
  const auto* bytes = static_cast<const std::byte*>(from);
  out.insert(out.end(), bytes, bytes + size);
  out.resize((out.size() + 3) / 4 * 4);
}

void attribute(std::vector<std::byte>& out, std::uint16_t type, const void* from, std::size_t size) {
  const std::uint16_t head[] = {static_cast<std::uint16_t>(4 + size), type};
  put(out, head, sizeof head);
  put(out, from, size);
}

TEST(NetlinkAttributes, StopAtABadLength) {
  std::vector<std::byte> bytes;
  const std::uint32_t value = 7;
  attribute(bytes, 1, &value, sizeof value);
  const std::uint16_t lies[] = {200, 2};
  put(bytes, lies, sizeof lies);
  const auto found = parse_attributes(bytes);
  EXPECT_EQ(found.size(), 1U);
  EXPECT_EQ(found.at(1).size(), sizeof value);
}

TEST(UnixDiag, ReadsPeerPendingAndShutdown) {
  std::vector<std::byte> bytes;
  unix_diag_msg head{};
  head.udiag_type = 1;
  head.udiag_state = 10;
  head.udiag_ino = 42;
  put(bytes, &head, sizeof head);
  const std::uint32_t peer = 0;
  attribute(bytes, UNIX_DIAG_PEER, &peer, sizeof peer);
  const std::uint32_t waiting[] = {7, 8};
  attribute(bytes, UNIX_DIAG_ICONS, waiting, sizeof waiting);
  const unix_diag_rqlen lengths{2, 128};
  attribute(bytes, UNIX_DIAG_RQLEN, &lengths, sizeof lengths);
  const std::uint8_t shut = 2;
  attribute(bytes, UNIX_DIAG_SHUTDOWN, &shut, sizeof shut);
  const auto diag = parse_unix_diag(bytes);
  ASSERT_TRUE(diag.has_value());
  EXPECT_EQ(diag->inode, 42U);
  ASSERT_TRUE(diag->peer.has_value()) << "a peer without an inode is not the same as none";
  EXPECT_EQ(*diag->peer, 0U);
  EXPECT_EQ(diag->pending, (std::vector<std::uint32_t>{7, 8}));
  EXPECT_EQ(diag->write_queue, 128U);
  EXPECT_EQ(diag->shutdown, 2);
}

TEST(UnixDiag, RefusesAShortAnswer) {
  const std::vector<std::byte> bytes(8);
  EXPECT_FALSE(parse_unix_diag(bytes).has_value());
}

}  // namespace
}  // namespace ferry::sys
