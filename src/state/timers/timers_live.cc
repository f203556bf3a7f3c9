#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <iterator>

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

LIVE_TEST(Timers, KeepsTimersOfEveryClock) {
  constexpr clockid_t kTai = 11;
  const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC,          CLOCK_BOOTTIME,
                              kTai,           CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
  sigevent event{};
  event.sigev_notify = SIGEV_NONE;
  int ids[std::size(clocks)];
  const itimerspec times{{7, 70}, {4000, 0}};
  for (std::size_t i = 0; i < std::size(clocks); ++i) {
    ids[i] = create(clocks[i], event);
    ASSERT_GE(ids[i], 0) << "clock " << clocks[i];
    ASSERT_EQ(::syscall(SYS_timer_settime, ids[i], 0, &times, nullptr), 0);
  }
  checkpoint_here();
  for (std::size_t i = 0; i < std::size(clocks); ++i) {
    itimerspec got{};
    ASSERT_EQ(::syscall(SYS_timer_gettime, ids[i], &got), 0);
    EXPECT_NEAR(seconds(got.it_value), 4000, 30) << "clock " << clocks[i];
    EXPECT_EQ(got.it_interval.tv_sec, 7);
    EXPECT_EQ(got.it_interval.tv_nsec, 70);
  }
}

LIVE_TEST(Timers, ATimerOfTheProcessorsTimeStillComes) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 2);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 2;
  const int id = create(CLOCK_PROCESS_CPUTIME_ID, event);
  ASSERT_GE(id, 0);
  const itimerspec soon{{0, 0}, {0, 400'000'000}};
  ASSERT_EQ(::syscall(SYS_timer_settime, id, 0, &soon, nullptr), 0);
  checkpoint_here();
  const timespec none{};
  timespec from{}, now{};
  ::clock_gettime(CLOCK_MONOTONIC, &from);
  bool came = false;
  do {
    came = ::sigtimedwait(&set, nullptr, &none) > 0;
    ::clock_gettime(CLOCK_MONOTONIC, &now);
  } while (!came && now.tv_sec - from.tv_sec < 20);
  EXPECT_TRUE(came);
}

LIVE_TEST(Timers, ATimerTellsItsThread) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 4);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  std::atomic<pid_t> tid{0};
  std::atomic<bool> go{false};
  int got = 0;
  std::thread thread([&] {
    tid = ::gettid();
    while (!go) {
      ::sched_yield();
    }
    const timespec patience{20, 0};
    got = ::sigtimedwait(&set, nullptr, &patience);
  });
  while (tid == 0) {
    ::sched_yield();
  }
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGRTMIN + 4;
  event._sigev_un._tid = tid;
  const int id = create(CLOCK_MONOTONIC, event);
  ASSERT_GE(id, 0);
  const itimerspec soon{{0, 0}, {0, 600'000'000}};
  ASSERT_EQ(::syscall(SYS_timer_settime, id, 0, &soon, nullptr), 0);
  checkpoint_here();
  // Only the thread that it tells has it pending.
  const timespec patience{20, 0}, none{};
  go = true;
  thread.join();
  EXPECT_EQ(got, SIGRTMIN + 4);
  EXPECT_EQ(::sigtimedwait(&set, nullptr, &none), -1);
  (void)patience;
}

LIVE_TEST(Timers, ATimerOfAThreadsProcessorTimeIsThatThreads) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 4);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  std::atomic<int> stage{0};
  int id = -1;
  itimerspec before{}, after{};
  std::thread thread([&] {
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN + 4;
    event._sigev_un._tid = ::gettid();
    id = create(CLOCK_THREAD_CPUTIME_ID, event);
    const itimerspec later{{0, 0}, {5000, 0}};
    ::syscall(SYS_timer_settime, id, 0, &later, nullptr);
    stage = 1;
    while (stage == 1) {
      ::usleep(1000);
    }
    // Time that this thread uses is the timer's.
    ::syscall(SYS_timer_gettime, id, &before);
    timespec used{};
    const auto from = (::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used), seconds(used));
    while (::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used), seconds(used) - from < 0.3) {
    }
    ::syscall(SYS_timer_gettime, id, &after);
  });
  while (stage == 0) {
    ::sched_yield();
  }
  ASSERT_GE(id, 0);
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_NEAR(seconds(before.it_value), 5000, 10);
  EXPECT_GE(seconds(before.it_value) - seconds(after.it_value), 0.29);
}

LIVE_TEST(Timers, OneWhoseThreadHasEndedStays) {
  int id = -1;
  std::thread([&] {
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN + 4;
    event._sigev_un._tid = ::gettid();
    id = create(CLOCK_MONOTONIC, event);
  }).join();
  ASSERT_GE(id, 0);
  const itimerspec later{{0, 0}, {3000, 0}};
  ASSERT_EQ(::syscall(SYS_timer_settime, id, 0, &later, nullptr), 0);
  itimerspec got{};
  for (const int round : {0, 1}) {
    ASSERT_EQ(::syscall(SYS_timer_gettime, id, &got), 0);
    EXPECT_NEAR(seconds(got.it_value), 3000, 30) << round;
    if (round == 0) {
      checkpoint_here();
    }
  }
}

LIVE_TEST(Timers, OneThatHasFiredIsPendingOnce) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 1);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 1;
  event.sigev_value.sival_int = 99;
  const int id = create(CLOCK_MONOTONIC, event);
  ASSERT_GE(id, 0);
  const itimerspec soon{{0, 0}, {0, 1'000'000}};
  ASSERT_EQ(::syscall(SYS_timer_settime, id, 0, &soon, nullptr), 0);
  sigset_t pending;
  do {
    ASSERT_EQ(::sigpending(&pending), 0);
  } while (sigismember(&pending, SIGRTMIN + 1) == 0);
  checkpoint_here();
  const timespec none{};
  siginfo_t info{};
  ASSERT_EQ(::sigtimedwait(&set, &info, &none), SIGRTMIN + 1);
  EXPECT_EQ(info.si_code, SI_TIMER);
  EXPECT_EQ(info.si_value.sival_int, 99);
  EXPECT_EQ(::sigtimedwait(&set, &info, &none), -1);
  itimerspec got{};
  ASSERT_EQ(::syscall(SYS_timer_gettime, id, &got), 0);
  EXPECT_EQ(seconds(got.it_value), 0);
}

LIVE_TEST_WITH(Timers, APeriodicOneGoesOn, Options{.changes = true}) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 1);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN + 1;
  const int id = create(CLOCK_MONOTONIC, event);
  ASSERT_GE(id, 0);
  timespec from{}, to{};
  ::clock_gettime(CLOCK_MONOTONIC, &from);
  const itimerspec often{{0, 10'000'000}, {0, 10'000'000}};
  ASSERT_EQ(::syscall(SYS_timer_settime, id, 0, &often, nullptr), 0);
  checkpoint_here();
  // Each signal stands for itself and for those that came while it was pending.
  const timespec patience{20, 0};
  int times = 0;
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(::sigtimedwait(&set, nullptr, &patience), SIGRTMIN + 1);
    times += 1 + static_cast<int>(::syscall(SYS_timer_getoverrun, id));
  }
  ::clock_gettime(CLOCK_MONOTONIC, &to);
  EXPECT_LE(times, (seconds(to) - seconds(from)) / 0.010 + 1) << "more often than time allows";
}

}  // namespace
}  // namespace ferry::live
