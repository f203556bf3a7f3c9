#include "state/fanotify/fanotify.h"

#include <gtest/gtest.h>

namespace ferry::state::fanotify {
namespace {

TEST(FanotifyFdinfo, FieldsAreHexadecimalWords) {
  constexpr std::string_view line = "2a sdev:800013 mflags:40 mask:b ignored_mask:40000000";
  EXPECT_EQ(hex_field(line, " sdev:"), 0x800013U);
  EXPECT_EQ(hex_field(line, " mask:"), 0xbU);
  EXPECT_EQ(hex_field(line, " ignored_mask:"), 0x40000000U);
  EXPECT_EQ(hex_field(line, " fhandle-type:"), std::nullopt);
  EXPECT_EQ(hex_field("mask:", "mask:"), std::nullopt);
  EXPECT_EQ(hex_field("mask:123456789", "mask:"), std::nullopt);
}

}  // namespace
}  // namespace ferry::state::fanotify
