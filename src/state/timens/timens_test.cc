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

TEST(TimensOffsets, WritesWhatItReads) {
  const Clocks offsets{-1'500'000'000, 10'000'000'007};
  EXPECT_EQ(format_offsets(offsets), "monotonic -2 500000000\nboottime 10 7\n");
  const auto again = parse_offsets(format_offsets(offsets));
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(*again, offsets);
}

class TimensWanted : public ::testing::Test {
 protected:
  TimensWanted() {
    entry_.mutable_monotonic()->set_tv_sec(100);
    entry_.mutable_monotonic()->set_tv_nsec(5);
    entry_.mutable_boottime()->set_tv_sec(1);
    entry_.mutable_boottime()->set_tv_nsec(0);
  }
  void of(const std::string& boot, const Clocks& offsets) {
    entry_.set_ferry_boot_id(boot);
    entry_.mutable_ferry_offsets()->set_monotonic_ns(offsets.monotonic_ns);
    entry_.mutable_ferry_offsets()->set_boottime_ns(offsets.boottime_ns);
  }
  pb::TimensEntry entry_;
  const Host host_{.boot_id = "here", .has_namespaces = true, .offsets = {}};
  const Clocks now_{40'000'000'000, 3'000'000'000};
  const Clocks from_reading_{60'000'000'005, -2'000'000'000};
};

TEST_F(TimensWanted, OwnNamespaceGoesOnFromItsLastReading) {
  of("here", {7, 7});
  EXPECT_EQ(wanted(entry_, true, host_, now_), from_reading_);
}

TEST_F(TimensWanted, AnotherBootGoesOnFromItsLastReading) {
  of("elsewhere", {});
  EXPECT_EQ(wanted(entry_, false, host_, now_), from_reading_);
}

TEST_F(TimensWanted, TheSameClocksNeedNoNamespace) {
  of("here", {});
  EXPECT_EQ(wanted(entry_, false, host_, now_), std::nullopt);
}

TEST_F(TimensWanted, ADumperWithOtherClocksIsFollowed) {
  of("here", {5, 6});
  EXPECT_EQ(wanted(entry_, false, host_, now_), (Clocks{5, 6}));
}

TEST_F(TimensWanted, ASetOfCriuKeepsTheHostsClocks) { EXPECT_EQ(wanted(entry_, false, host_, now_), std::nullopt); }

TEST_F(TimensWanted, AMoveSaysItself) {
  of("elsewhere", {});
  entry_.mutable_ferry_go_on()->set_monotonic_ns(8);
  entry_.mutable_ferry_go_on()->set_boottime_ns(9);
  EXPECT_EQ(wanted(entry_, false, host_, now_), (Clocks{8, 9}));
  EXPECT_EQ(wanted(entry_, true, host_, now_), (Clocks{8, 9}));
}

}  // namespace
}  // namespace ferry::state::timens
