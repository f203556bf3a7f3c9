#include "state/timerfd/timerfd.h"

#include <gtest/gtest.h>

namespace ferry::state {
namespace {

TEST(TimerfdFdinfo, ReadsAllFields) {
  const auto info = parse_timerfd(sys::parse_fdinfo("flags:\t02\nclockid: 1\nticks: 3\nsettime flags: 03\n"
                                                    "it_value: (9, 999999999)\nit_interval: (2, 1)\n")
                                      .value());
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(info->clock, 1);
  EXPECT_EQ(info->ticks, 3U);
  EXPECT_EQ(info->settime_flags, 3U);
  EXPECT_EQ(info->value.tv_nsec, 999999999);
  EXPECT_EQ(info->interval.tv_sec, 2);
}

TEST(TimerfdFdinfo, RefusesNanosecondsOfASecond) {
  EXPECT_FALSE(parse_timerfd(sys::parse_fdinfo("flags:\t02\nclockid: 1\nticks: 3\nsettime flags: 0\n"
                                               "it_value: (9, 1000000000)\nit_interval: (2, 1)\n")
                                 .value())
                   .has_value());
}

}  // namespace
}  // namespace ferry::state
