#include "sys/packet_look.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/unique_fd.h"

namespace ferry::sys {
namespace {

constexpr std::uint16_t kType = 0x9a20;  // of no protocol

class PacketLookTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) {
      GTEST_SKIP() << "packet sockets are root's";
    }
    const auto opened = open_look();
    if (!opened.has_value()) {
      GTEST_SKIP() << opened.error().message();
    }
  }
  static Result<PacketLook> open_look() { return PacketLook::open(); }

  static UniqueFd packet_socket(std::uint16_t type) {
    UniqueFd fd(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const sockaddr_ll own = loopback(type);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own), 0);
    return fd;
  }
  static sockaddr_ll loopback(std::uint16_t type) {
    sockaddr_ll out{};
    out.sll_family = AF_PACKET;
    out.sll_protocol = htons(type);
    out.sll_ifindex = static_cast<int>(::if_nametoindex("lo"));
    return out;
  }
};

TEST_F(PacketLookTest, TellsTheFrameThatIsNext) {
  const auto look = open_look();
  ASSERT_TRUE(look.has_value());
  const UniqueFd other = packet_socket(kType + 1), fd = packet_socket(kType);
  const tpacket_req ring{4096, 1, 256, 16};
  ASSERT_EQ(::setsockopt(fd.get(), SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring), 0);
  const auto before = look->at(fd.get());
  ASSERT_TRUE(before.has_value()) << before.error().message();
  EXPECT_EQ(*before, PacketPositions{});
  const sockaddr_ll to = loopback(kType);
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(::sendto(other.get(), "x", 1, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to), 1);
  }
  const auto after = look->at(fd.get());
  ASSERT_TRUE(after.has_value());
  EXPECT_EQ(after->rx_frame, 5U);
  EXPECT_EQ(after->tx_frame, 0U);
}

TEST_F(PacketLookTest, TellsOfOneSocketAmongMany) {
  const auto look = open_look();
  ASSERT_TRUE(look.has_value());
  const UniqueFd sender = packet_socket(kType + 2), one = packet_socket(kType + 3), two = packet_socket(kType + 4);
  const tpacket_req ring{4096, 1, 256, 16};
  for (const UniqueFd* fd : {&one, &two}) {
    ASSERT_EQ(::setsockopt(fd->get(), SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring), 0);
  }
  const sockaddr_ll to = loopback(kType + 4);
  ASSERT_EQ(::sendto(sender.get(), "x", 1, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to), 1);
  const auto of_one = look->at(one.get()), of_two = look->at(two.get());
  ASSERT_TRUE(of_one.has_value() && of_two.has_value());
  EXPECT_EQ(of_one->rx_frame, 0U);
  EXPECT_EQ(of_two->rx_frame, 1U);
}

}  // namespace
}  // namespace ferry::sys
