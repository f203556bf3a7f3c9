#include "state/timers/timers.h"

#include <gtest/gtest.h>
#include <signal.h>

namespace ferry::state::timers {
namespace {

TEST(PosixTimers, ReadsEveryFieldOfTheList) {
  const auto timers = parse_timers(
      "ID: 1\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n"
      "ID: 7\nsignal: 34/0000000000000000\nnotify: thread/tid.12\nClockID: -6\n"
      "ID: 8\nsignal: 14/(null)\nnotify: none/pid.1\nClockID: 7\n");
  ASSERT_TRUE(timers.has_value()) << timers.error().message();
  ASSERT_EQ(timers->size(), 3U);
  EXPECT_EQ((*timers)[0].id, 1);
  EXPECT_EQ((*timers)[0].signal, 60);
  EXPECT_EQ((*timers)[0].value, 0x7fff86e452a8U);
  EXPECT_EQ((*timers)[0].notify, SIGEV_SIGNAL);
  EXPECT_EQ((*timers)[0].clock, 0);
  EXPECT_EQ((*timers)[1].notify, SIGEV_THREAD | SIGEV_THREAD_ID);
  EXPECT_EQ((*timers)[1].thread, 12);
  EXPECT_EQ((*timers)[1].clock, -6);
  EXPECT_EQ((*timers)[2].notify, SIGEV_NONE);
  EXPECT_EQ((*timers)[2].value, 0U);
}

TEST(PosixTimers, AnEmptyListIsAnAnswer) {
  const auto timers = parse_timers("");
  ASSERT_TRUE(timers.has_value());
  EXPECT_TRUE(timers->empty());
}

TEST(PosixTimers, RefusesTextThatIsNotAList) {
  for (const char* text : {"signal: 1/0\n", "ID: x\n", "ID: 99999999999\n", "ID: 1\nsignal: 60\n",
                           "ID: 1\nsignal: 99/0\n", "ID: 1\nnotify: signal\n", "ID: 1\nnotify: other/pid.1\n",
                           "ID: 1\nnotify: signal/xid.1\n", "ID: 1\nClockID: \x01\n"}) {
    EXPECT_FALSE(parse_timers(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace ferry::state::timers
