#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "live/live.h"

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080  // time_namespaces(7)
#endif

namespace ferry::live {
namespace {

double now(clockid_t clock) {
  timespec time{};
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}
// The same without the vDSO.
double now_by_call(clockid_t clock) {
  timespec time{};
  ::syscall(SYS_clock_gettime, clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

LIVE_TEST(TimeNamespace, ClocksGoOn) {
  constexpr double kMonotonic = 1'000'000, kBoottime = 2'000'000;
  const double before_monotonic = now(CLOCK_MONOTONIC), before_boottime = now(CLOCK_BOOTTIME);
  if (::unshare(CLONE_NEWTIME) != 0) {
    GTEST_SKIP() << "no time namespaces here: " << std::strerror(errno);
  }
  std::ofstream("/proc/self/timens_offsets") << "monotonic 1000000 0\nboottime 2000000 0\n";
  const int ns = ::open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(ns, 0);
  ASSERT_EQ(::setns(ns, CLONE_NEWTIME), 0) << std::strerror(errno);
  ::close(ns);
  ASSERT_GE(now(CLOCK_MONOTONIC) - before_monotonic, kMonotonic);
  const double monotonic = now(CLOCK_MONOTONIC);
  const timespec until{static_cast<time_t>(monotonic) + 2, 0};
  checkpoint_here();
  for (const auto& [clock, start] : {std::pair(CLOCK_MONOTONIC, before_monotonic + kMonotonic),
                                     std::pair(CLOCK_BOOTTIME, before_boottime + kBoottime)}) {
    EXPECT_GE(now(clock), start);
    EXPECT_LE(now(clock), start + 100) << "a hundred seconds did not pass";
    EXPECT_NEAR(now(clock), now_by_call(clock), 1);
  }
  // What was a deadline is one.
  EXPECT_EQ(::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr), 0);
  EXPECT_GE(now(CLOCK_MONOTONIC), static_cast<double>(until.tv_sec));
  EXPECT_LE(now(CLOCK_MONOTONIC), static_cast<double>(until.tv_sec) + 100);
}

}  // namespace
}  // namespace ferry::live
