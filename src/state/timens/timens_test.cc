#include "state/timens/timens.h"

#include <gtest/gtest.h>

namespace ferry::state::timens {
namespace {

TEST(TimensOffsets, ReadsNegativeSecondsWithPositiveNanoseconds) {
  const auto offsets = parse_offsets("monotonic         -2  500000000\nboottime          10         7\n");
  ASSERT_TRUE(offsets.has_value());
  EXPECT_EQ(offsets->monotonic_ns, -1'500'000'000);
  EXPECT_EQ(offsets->boottime_ns, 10'000'000'007);
}

TEST(TimensOffsets, RefusesWhatIsMissing) {
  EXPECT_FALSE(parse_offsets("monotonic 1 2\n").has_value());
  EXPECT_FALSE(parse_offsets("monotonic 1\nboottime 1 2\n").has_value());
  EXPECT_FALSE(parse_offsets("").has_value());
}

TEST(TimensOffsets, ContinueTheClockFromItsLastReading) {
  pb::TimensEntry entry;
  entry.mutable_monotonic()->set_tv_sec(100);
  entry.mutable_monotonic()->set_tv_nsec(5);
  entry.mutable_boottime()->set_tv_sec(1);
  entry.mutable_boottime()->set_tv_nsec(0);
  const Offsets offsets = offsets_for(entry, {.monotonic_ns = 40'000'000'000, .boottime_ns = 3'000'000'000});
  EXPECT_EQ(offsets.monotonic_ns, 60'000'000'005);
  EXPECT_EQ(offsets.boottime_ns, -2'000'000'000);
}

}  // namespace
}  // namespace ferry::state::timens
