#include "migrate/pace.h"

#include <gtest/gtest.h>

namespace ferry::migrate {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
constexpr std::uint64_t kMiB = 1U << 20;

TEST(Pace, KeepsTheRateOverALongTime) {
  Pace pace(10 * kMiB);
  const Pace::Clock::time_point begin(seconds(1000));
  auto now = begin;
  for (int i = 0; i < 100; ++i) {
    now = pace.book(now, kMiB);  // whoever sends waits for its turn
  }
  // 100 MiB at 10 MiB a second, of which a quarter of a second was free.
  EXPECT_NEAR(std::chrono::duration<double>(now - begin).count(), 10.0 - 0.25, 0.01);
}

TEST(Pace, LetsALateSenderCatchUpButNotForEver) {
  Pace pace(10 * kMiB);
  const Pace::Clock::time_point begin(seconds(1000));
  EXPECT_EQ(pace.book(begin, 2 * kMiB), begin);  // 2.5 MiB had been saved
  EXPECT_GT(pace.book(begin, 2 * kMiB), begin + milliseconds(100));
  const auto later = begin + seconds(60);
  EXPECT_EQ(pace.book(later, 2 * kMiB), later);
  EXPECT_EQ(pace.book(later, kMiB), later + milliseconds(50));
}

TEST(Pace, SharesTheRateAmongThoseWhoAskAtTheSameTime) {
  Pace pace(kMiB);
  const Pace::Clock::time_point now(seconds(1000));
  const auto first = pace.book(now, kMiB);
  const auto second = pace.book(now, kMiB);
  EXPECT_EQ(second - first, seconds(1));
}

TEST(Pace, HoldsNobodyOnceItIsLifted) {
  Pace pace(1000);
  const Pace::Clock::time_point now(seconds(1000));
  EXPECT_GT(pace.book(now, kMiB), now + seconds(100));
  pace.lift();
  EXPECT_EQ(pace.book(now, kMiB), now);
}

}  // namespace
}  // namespace ferry::migrate
