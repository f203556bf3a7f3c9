#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "live/live.h"

namespace ferry::live {
namespace {

double seconds(const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6; }
double seconds(const timespec& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) / 1e9; }

// By number: the C library hides the kernel's ids.
int create(clockid_t clock, sigevent& event) {
  int id = -1;
  return ::syscall(SYS_timer_create, clock, &event, &id) == 0 ? id : -1;
}

LIVE_TEST(Timers, KeepsIntervalTimers) {
  const itimerval real{{100, 0}, {1000, 0}}, prof{{7, 500}, {2000, 0}};
  ASSERT_EQ(::setitimer(ITIMER_REAL, &real, nullptr), 0);
  ASSERT_EQ(::setitimer(ITIMER_PROF, &prof, nullptr), 0);
  checkpoint_here();
  itimerval got{};
  ASSERT_EQ(::getitimer(ITIMER_REAL, &got), 0);
  EXPECT_NEAR(seconds(got.it_value), 1000, 30);
  EXPECT_EQ(seconds(got.it_interval), 100);
  ASSERT_EQ(::getitimer(ITIMER_PROF, &got), 0);
  EXPECT_NEAR(seconds(got.it_value), 2000, 30);
  EXPECT_EQ(got.it_interval.tv_usec, 500);
  ASSERT_EQ(::getitimer(ITIMER_VIRTUAL, &got), 0);
  EXPECT_EQ(seconds(got.it_value), 0) << "one that did not run";
}

LIVE_TEST(Timers, AnAlarmStillComes) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGALRM);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  const itimerval soon{{0, 0}, {0, 300'000}};
  ASSERT_EQ(::setitimer(ITIMER_REAL, &soon, nullptr), 0);
  checkpoint_here();
  const timespec patience{20, 0};
  EXPECT_EQ(::sigtimedwait(&set, nullptr, &patience), SIGALRM);
}

LIVE_TEST(Timers, KeepsPosixTimersWithTheirIds) {
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 3;
  int ids[6];
  for (int& id : ids) {
    event.sigev_value.sival_ptr = &id;
    id = create(CLOCK_MONOTONIC, event);
    ASSERT_GE(id, 0);
  }
  // A gap, and two that run
  ASSERT_EQ(::syscall(SYS_timer_delete, ids[0]), 0);
  ASSERT_EQ(::syscall(SYS_timer_delete, ids[3]), 0);
  const itimerspec once{{0, 0}, {5000, 0}}, often{{3, 5}, {400, 0}};
  ASSERT_EQ(::syscall(SYS_timer_settime, ids[2], 0, &once, nullptr), 0);
  ASSERT_EQ(::syscall(SYS_timer_settime, ids[5], 0, &often, nullptr), 0);
  checkpoint_here();
  itimerspec got{};
  ASSERT_EQ(::syscall(SYS_timer_gettime, ids[2], &got), 0);
  EXPECT_NEAR(seconds(got.it_value), 5000, 30);
  ASSERT_EQ(::syscall(SYS_timer_gettime, ids[5], &got), 0);
  EXPECT_NEAR(seconds(got.it_value), 400, 30);
  EXPECT_EQ(got.it_interval.tv_nsec, 5);
  ASSERT_EQ(::syscall(SYS_timer_gettime, ids[1], &got), 0);
  EXPECT_EQ(seconds(got.it_value), 0);
  EXPECT_EQ(::syscall(SYS_timer_gettime, ids[0], &got), -1);
  EXPECT_EQ(::syscall(SYS_timer_gettime, ids[3], &got), -1);
}

LIVE_TEST(Timers, APosixTimerFiresWithItsValue) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 1);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGRTMIN + 1;
  event.sigev_value.sival_int = 4711;
  event._sigev_un._tid = ::gettid();
  const int id = create(CLOCK_REALTIME, event);
  ASSERT_GE(id, 0);
  const itimerspec soon{{0, 0}, {0, 300'000'000}};
  ASSERT_EQ(::syscall(SYS_timer_settime, id, 0, &soon, nullptr), 0);
  checkpoint_here();
  const timespec patience{20, 0};
  siginfo_t info{};
  ASSERT_EQ(::sigtimedwait(&set, &info, &patience), SIGRTMIN + 1);
  EXPECT_EQ(info.si_code, SI_TIMER);
  EXPECT_EQ(info.si_value.sival_int, 4711);
}

}  // namespace
}  // namespace ferry::live
