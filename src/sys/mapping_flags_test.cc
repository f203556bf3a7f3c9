#include "sys/mapping_flags.h"

#include <gtest/gtest.h>

namespace ferry::sys {
namespace {

TEST(MappingFlags, LearnsWhichBitIsWhich) {
  const auto flags = MappingFlags::learn({{0b0001, "rd"}, {0b0011, "rd wr"}, {0b0101, "rd ex"}});
  ASSERT_TRUE(flags.has_value()) << flags.error().message();
  EXPECT_EQ(flags->names_of(0b0111), " ex wr rd ");
  EXPECT_EQ(flags->names_of(0b0010), " wr ");
  EXPECT_EQ(flags->names_of(0), " ");
}

TEST(MappingFlags, SaysNothingAboutABitThatItNeverSaw) {
  const auto flags = MappingFlags::learn({{0b0001, "rd"}, {0b0011, "rd wr"}});
  ASSERT_TRUE(flags.has_value());
  EXPECT_EQ(flags->names_of(0b1001), std::nullopt);
}

TEST(MappingFlags, DoesNotTellApartWhatComesOnlyTogether) {
  const auto flags = MappingFlags::learn({{0b0001, "rd"}, {0b0111, "rd io pf"}});
  ASSERT_TRUE(flags.has_value());
  EXPECT_EQ(flags->names_of(0b0111), " io pf rd ");
  EXPECT_EQ(flags->names_of(0b0011), std::nullopt);
}

TEST(MappingFlags, KnowsThatABitMayHaveNoName) {
  const auto flags = MappingFlags::learn({{0b0001, "rd"}, {0b0011, "rd"}, {0b0101, "rd ??"}});
  ASSERT_TRUE(flags.has_value());
  EXPECT_EQ(flags->names_of(0b0111), " rd ");
}

TEST(MappingFlags, RefusesExamplesThatContradictEachOther) {
  EXPECT_FALSE(MappingFlags::learn({{0b0001, "rd"}, {0b0001, "rd wr"}}).has_value());
}

}  // namespace
}  // namespace ferry::sys
