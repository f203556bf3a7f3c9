#include <arpa/inet.h>
#include <gtest/gtest.h>

#include "state/inet_socket/inet_socket.h"

namespace ferry::state::inet_socket {
namespace {

TEST(Endpoint, KeepsBytesInNetworkOrder) {
  const std::vector<std::uint32_t> words{16777343};  // 127.0.0.1 as CRIU's images have it
  const auto endpoint = Endpoint::from_image(AF_INET, 80, words);
  ASSERT_TRUE(endpoint.has_value());
  EXPECT_EQ(endpoint->text(), "127.0.0.1:80");
  const auto back = Endpoint::from(endpoint->to_sockaddr());
  ASSERT_TRUE(back.has_value());
  EXPECT_EQ(back->words, words);
  EXPECT_EQ(back->port, 80);
}

TEST(Endpoint, HasFourWordsForIpv6) {
  const std::vector<std::uint32_t> words{0, 0, 0, 16777216};
  const auto endpoint = Endpoint::from_image(AF_INET6, 443, words);
  ASSERT_TRUE(endpoint.has_value());
  EXPECT_EQ(endpoint->text(), "[::1]:443");
  EXPECT_FALSE(endpoint->is_any());
}

TEST(Endpoint, RefusesWhatNoAddressIs) {
  const std::vector<std::uint32_t> two{1, 2}, one{1};
  EXPECT_FALSE(Endpoint::from_image(AF_INET, 80, two).has_value());
  EXPECT_FALSE(Endpoint::from_image(AF_INET6, 80, one).has_value());
  EXPECT_FALSE(Endpoint::from_image(AF_UNIX, 80, one).has_value());
  EXPECT_FALSE(Endpoint::from_image(AF_INET, 65536, one).has_value());
}

}  // namespace
}  // namespace ferry::state::inet_socket
