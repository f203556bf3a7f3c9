#include "state/inside.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace ferry::state {
namespace {

TEST(Inside, RunsWorkOnOneThreadOfItsOwnAndGivesItsOutcome) {
  Inside inside;
  pid_t first = 0;
  ASSERT_TRUE(inside.run([&]() -> Result<void> {
    first = ::gettid();
    return {};
  }));
  EXPECT_NE(first, ::gettid());
  const auto second = inside.get<pid_t>([]() -> Result<pid_t> { return ::gettid(); });
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(*second, first);
  const auto failed = inside.run([]() -> Result<void> { return fail(Kind::denied, "not today"); });
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().kind, Kind::denied);
  EXPECT_TRUE(inside.run([]() -> Result<void> { return {}; }));  // the failure before is not its own
}

TEST(Inside, DoesTheSameAwakeAndAsleep) {
  Inside inside;
  int count = 0;
  const auto work = [&]() -> Result<void> {
    ++count;
    return {};
  };
  for (int round = 0; round < 50; ++round) {
    ASSERT_TRUE(inside.run(work));
    inside.stay_awake();
    ASSERT_TRUE(inside.run(work));
    ASSERT_TRUE(inside.run(work));
    inside.sleep_again();
  }
  EXPECT_EQ(count, 150);
  inside.stay_awake();  // and may end so
}

TEST(Inside, MayEndWithoutHavingDoneAnything) {
  Inside inside;
  inside.stay_awake();
  inside.sleep_again();
}

}  // namespace
}  // namespace ferry::state
