#include "state/net/message.h"

#include <gtest/gtest.h>
#include <linux/rtnetlink.h>

namespace ferry::state::net {
namespace {

TEST(NetMessage, ReadsBackWhatItWrote) {
  ifinfomsg head{};
  head.ifi_index = 7;
  Message message(head);
  message.put_text(IFLA_IFNAME, "eth0");
  message.nest(IFLA_LINKINFO, [&] {
    message.put_text(IFLA_INFO_KIND, "veth");
    message.nest(IFLA_INFO_DATA, [&] { message.put_number<std::uint8_t>(3, 200); });
  });
  message.put_number<std::uint32_t>(IFLA_MTU, 1400);

  EXPECT_EQ(head_of<ifinfomsg>(message.bytes())->ifi_index, 7);
  const auto attributes = after_head<ifinfomsg>(message.bytes());
  ASSERT_EQ(attributes.size(), 3U);
  EXPECT_EQ(text_of(find(attributes, IFLA_IFNAME)), "eth0");
  EXPECT_EQ(value_as<std::uint32_t>(find(attributes, IFLA_MTU)), 1400U);
  const auto info = attributes_of(find(attributes, IFLA_LINKINFO)->value);
  EXPECT_EQ(text_of(find(info, IFLA_INFO_KIND)), "veth");
  EXPECT_EQ(value_as<std::uint8_t>(find(attributes_of(find(info, IFLA_INFO_DATA)->value), 3)), 200);
  EXPECT_FALSE(find(attributes, IFLA_MASTER).has_value());
}

TEST(NetMessage, StopsAtALengthThatDoesNotFit) {
  const std::byte cut[] = {std::byte{40}, std::byte{0}, std::byte{1}, std::byte{0}, std::byte{9}};
  EXPECT_TRUE(attributes_of(cut).empty());
  EXPECT_FALSE(head_of<ifinfomsg>(cut).has_value());
  EXPECT_TRUE(after_head<ifinfomsg>(cut).empty());
}

TEST(NetMessage, KeepsMessagesOneAfterTheOther) {
  std::string text;
  const std::byte body[] = {std::byte{1}, std::byte{2}, std::byte{3}};
  append_message(text, RTM_NEWADDR, body);
  append_message(text, RTM_NEWROUTE, body);
  std::vector<std::uint16_t> types;
  const auto collect = [&](std::uint16_t type, Bytes bytes) -> Result<void> {
    EXPECT_EQ(bytes.size(), 3U);
    types.push_back(type);
    return {};
  };
  ASSERT_TRUE(each_message(text, "test", collect).has_value());
  EXPECT_EQ(types, (std::vector<std::uint16_t>{RTM_NEWADDR, RTM_NEWROUTE}));
  EXPECT_FALSE(each_message(text.substr(0, text.size() - 6), "test", collect).has_value());
}

}  // namespace
}  // namespace ferry::state::net
