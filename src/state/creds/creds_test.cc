#include "state/creds/creds.h"

#include <gtest/gtest.h>

namespace ferry::state::creds {
namespace {

TEST(Capabilities, JoinsTheWordsLowFirst) {
  google::protobuf::RepeatedField<std::uint32_t> words;
  words.Add(0xa80425fbU);
  words.Add(0x1ffU);
  const auto set = capabilities(words, "cap_eff");
  ASSERT_TRUE(set.has_value());
  EXPECT_EQ(*set, 0x1ffa80425fbULL);
}

TEST(Capabilities, OldImagesMayHaveNone) {
  const auto set = capabilities({}, "cap_amb");
  ASSERT_TRUE(set.has_value());
  EXPECT_EQ(*set, 0U);
}

TEST(Capabilities, RefusesMoreWordsThanThereAre) {
  google::protobuf::RepeatedField<std::uint32_t> words;
  words.Resize(3, 0);
  const auto set = capabilities(words, "cap_bnd");
  ASSERT_FALSE(set.has_value());
  EXPECT_EQ(set.error().kind, Kind::corrupt);
}

TEST(Capabilities, AreNamedAndTheUnknownShownInHexadecimal) {
  EXPECT_EQ(capability_names(1), "CAP_CHOWN");
  EXPECT_EQ(capability_names(1ULL << 40 | 1ULL << 21), "CAP_SYS_ADMIN CAP_CHECKPOINT_RESTORE");
  EXPECT_EQ(capability_names(1ULL << 63), "0x8000000000000000");
  EXPECT_EQ(capability_names(0), "");
}

}  // namespace
}  // namespace ferry::state::creds
