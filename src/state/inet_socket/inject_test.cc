#include "state/inet_socket/inject.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>

namespace ferry::state::inet_socket {
namespace {

Endpoint v4(const char* text, std::uint16_t port) {
  std::uint32_t word = 0;
  EXPECT_EQ(::inet_pton(AF_INET, text, &word), 1);
  return {AF_INET, port, {word}, 0};
}

Endpoint v6(const char* text, std::uint16_t port) {
  std::vector<std::uint32_t> words(4);
  EXPECT_EQ(::inet_pton(AF_INET6, text, words.data()), 1);
  return {AF_INET6, port, std::move(words), 0};
}

// The ones' complement sum over what the checksum covers, its own field included, is all ones (RFC 1071).
std::uint32_t sum_of(const std::string& bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    sum += static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i])) << (i % 2 == 0 ? 8 : 0);
  }
  while (sum >> 16 != 0) {
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return sum;
}

TEST(Packet, IsATcpSegmentWithItsChecksum) {
  Segment segment;
  segment.sequence = 0x01020304;
  segment.acknowledged = 5;
  segment.flags = kFin | kAck;
  segment.window = 77;
  segment.payload = "odd";
  const auto packet = tcp_packet(v4("10.0.0.1", 1000), v4("10.0.0.2", 80), segment);
  ASSERT_TRUE(packet.has_value());
  ASSERT_EQ(packet->size(), 20U + 20U + 3U);
  EXPECT_EQ(packet->substr(0, 1), "\x45");
  EXPECT_EQ(packet->substr(20, 4), std::string("\x03\xe8\x00\x50", 4)) << "the ports";
  EXPECT_EQ(packet->substr(24, 4), "\x01\x02\x03\x04");
  EXPECT_EQ((*packet)[33], kFin | kAck);
  const std::string pseudo = packet->substr(12, 8) + std::string("\0\x06\0\x17", 4);
  EXPECT_EQ(sum_of(pseudo + packet->substr(20)), 0xffffU);
}

TEST(Packet, IsADatagramOverIpv6) {
  const auto packet = udp_packet(v6("fd00::1", 5), v6("fd00::2", 6), IPPROTO_UDP, "hello");
  ASSERT_TRUE(packet.has_value());
  ASSERT_EQ(packet->size(), 40U + 8U + 5U);
  const std::string pseudo = packet->substr(8, 32) + std::string("\0\0\0\x0d\0\0\0\x11", 8);
  EXPECT_EQ(sum_of(pseudo + packet->substr(40)), 0xffffU);
}

TEST(Packet, RefusesWhatNoPacketCanBe) {
  EXPECT_FALSE(udp_packet(v4("10.0.0.1", 5), v6("fd00::2", 6), IPPROTO_UDP, "").has_value());
  EXPECT_FALSE(udp_packet(v4("10.0.0.1", 5), v4("10.0.0.2", 6), IPPROTO_UDP, std::string(65536, 'x')).has_value());
}

TEST(Packet, TakesMappedAddressesForWhatTheyAre) {
  const Endpoint plain = on_the_wire(v6("::ffff:10.1.2.3", 9));
  EXPECT_EQ(plain.text(), "10.1.2.3:9");
  EXPECT_EQ(on_the_wire(v6("::1", 9)).text(), "[::1]:9");
}

}  // namespace
}  // namespace ferry::state::inet_socket
