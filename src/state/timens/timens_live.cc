#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "live/family.h"
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

void write_offsets(long seconds) {
  std::ofstream("/proc/self/timens_offsets") << "monotonic " << seconds << " 0\nboottime " << 2 * seconds << " 0\n";
}
bool choose(long seconds) {
  if (::unshare(CLONE_NEWTIME) != 0) {
    return false;
  }
  write_offsets(seconds);
  return true;
}
// Moves where the children were to live.
void follow() {
  const int ns = ::open("/proc/self/ns/time_for_children", O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(::setns(ns, CLONE_NEWTIME), 0) << std::strerror(errno);
  ::close(ns);
}
std::string link_of(const char* path) {
  char text[64] = {};
  return ::readlink(path, text, sizeof text - 1) > 0 ? text : "";
}
constexpr const char* kOwn = "/proc/self/ns/time";
constexpr const char* kChosen = "/proc/self/ns/time_for_children";
// Whether the caller's clock is about so far ahead of one that showed `base` at `then`, both by the vDSO and the
// kernel.
bool is_ahead(double base, double by) {
  const double clock = now(CLOCK_MONOTONIC), call = now_by_call(CLOCK_MONOTONIC);
  return clock >= base + by && clock <= base + by + 100 && call >= clock && call <= clock + 1;
}

LIVE_TEST(TimeNamespace, AnotherOneOfTheChildren) {
  constexpr long kAhead = 1'000'000;
  const double base = now(CLOCK_MONOTONIC);
  if (!choose(kAhead)) {
    GTEST_SKIP() << "no time namespaces here: " << std::strerror(errno);
  }
  const Family family;
  const pid_t child =
      fork_to([&] { family.stay([&] { return is_ahead(base, kAhead) && link_of(kOwn) == link_of(kChosen); }); });
  ASSERT_EQ(family.next_number(), child);
  checkpoint_here();
  EXPECT_TRUE(is_ahead(base, 0));
  EXPECT_NE(link_of(kOwn), link_of(kChosen));
  EXPECT_EQ(link_of(kChosen), link_of(("/proc/" + std::to_string(child) + "/ns/time").c_str()));
  const pid_t younger = fork_to([&] { ::_exit(is_ahead(base, kAhead) ? 0 : 1); });
  EXPECT_EQ(Family::end_of(younger), 0);
  family.go();
  EXPECT_EQ(Family::end_of(child), 0);
}

LIVE_TEST(TimeNamespace, ChosenOneWithoutChildrenCanStillBeSet) {
  const double base = now(CLOCK_MONOTONIC);
  if (!choose(1'000'000)) {
    GTEST_SKIP() << "no time namespaces here: " << std::strerror(errno);
  }
  checkpoint_here();
  write_offsets(3'000'000);
  const pid_t child = fork_to([&] { ::_exit(is_ahead(base, 3'000'000) ? 0 : 1); });
  EXPECT_EQ(Family::end_of(child), 0);
}

// One inside the other, as programs see it; for the kernel they stand side by side.
LIVE_TEST(TimeNamespace, OneChosenInsideAnother) {
  constexpr long kFirst = 1'000'000, kSecond = 5'000'000;
  const double base = now(CLOCK_MONOTONIC);
  if (!choose(kFirst)) {
    GTEST_SKIP() << "no time namespaces here: " << std::strerror(errno);
  }
  follow();
  ASSERT_TRUE(choose(kSecond));
  const Family family;
  const pid_t child = fork_to([&] {
    (void)choose(0);  // counts from the same clocks
    const pid_t grandchild = fork_to([&] { family.stay([&] { return is_ahead(base, 0); }); });
    family.tell(grandchild);
    family.wait();
    ::_exit(is_ahead(base, kSecond) && Family::end_of(grandchild) == 0 ? 0 : 1);
  });
  ASSERT_GT(family.next_number(), 0);
  ASSERT_GT(family.next_number(), 0);
  checkpoint_here();
  EXPECT_TRUE(is_ahead(base, kFirst));
  family.go(2);
  EXPECT_EQ(Family::end_of(child), 0);
}

LIVE_TEST(TimeNamespace, OneThatNobodyChoosesAnyMore) {
  const double base = now(CLOCK_MONOTONIC);
  const int home = ::open(kOwn, O_RDONLY | O_CLOEXEC);
  if (!choose(1'000'000)) {
    GTEST_SKIP() << "no time namespaces here: " << std::strerror(errno);
  }
  const Family family;
  const auto stay = [&] { family.stay([&] { return is_ahead(base, 1'000'000); }); };
  const pid_t children[] = {fork_to(stay), fork_to(stay)};
  if (::setns(home, CLONE_NEWTIME) != 0) {
    family.go(2);
    GTEST_SKIP() << "cannot go back: " << std::strerror(errno);
  }
  ::close(home);
  for ([[maybe_unused]] const pid_t child : children) {
    ASSERT_GT(family.next_number(), 0);
  }
  checkpoint_here();
  EXPECT_EQ(link_of(kOwn), link_of(kChosen));
  EXPECT_TRUE(is_ahead(base, 0));
  family.go(2);
  for (const pid_t child : children) {
    EXPECT_EQ(Family::end_of(child), 0);
  }
}

const Options kRefused{.refused = "several threads and has chosen another time namespace"};

LIVE_TEST_WITH(TimeNamespace, ChosenByAProcessWithThreads, kRefused) {
  std::atomic<bool> end = false, begun = false;
  std::thread thread([&] {
    begun = true;  // it comes to life with all signals blocked
    while (!end) {
      ::usleep(1000);
    }
  });
  while (!begun) {
    std::this_thread::yield();
  }
  const bool chosen = choose(1'000'000);
  if (chosen) {
    checkpoint_here();
  }
  end = true;
  thread.join();
  if (!chosen) {
    GTEST_SKIP() << "no time namespaces here";
  }
}

// What waits for a time inside of a namespace.
double left_of(int timerfd) {
  itimerspec value{};
  EXPECT_EQ(::timerfd_gettime(timerfd, &value), 0);
  return static_cast<double>(value.it_value.tv_sec) + static_cast<double>(value.it_value.tv_nsec) / 1e9;
}
double left_of(timer_t timer) {
  itimerspec value{};
  EXPECT_EQ(::timer_gettime(timer, &value), 0);
  return static_cast<double>(value.it_value.tv_sec) + static_cast<double>(value.it_value.tv_nsec) / 1e9;
}

LIVE_TEST(TimeNamespace, TimersOfItsClocks) {
  constexpr long kWait = 5000;
  if (!choose(1'000'000)) {
    GTEST_SKIP() << "no time namespaces here: " << std::strerror(errno);
  }
  follow();
  std::vector<std::pair<clockid_t, int>> files;
  std::vector<std::pair<clockid_t, timer_t>> timers;
  for (const clockid_t clock : {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_BOOTTIME_ALARM}) {
    // The alarm clocks show the time of those that do not wake the machine (clock_getres(2)).
    const double end = now(clock == CLOCK_BOOTTIME_ALARM ? CLOCK_BOOTTIME : clock) + kWait;
    for (const int flags : {0, static_cast<int>(TFD_TIMER_ABSTIME)}) {
      const itimerspec value{{7, 0}, {flags != 0 ? static_cast<time_t>(end) : kWait, 0}};
      const int file = ::timerfd_create(clock, TFD_CLOEXEC);
      if (file >= 0 && ::timerfd_settime(file, flags, &value, nullptr) == 0) {
        files.emplace_back(clock, file);
      }
      sigevent none{};
      none.sigev_notify = SIGEV_NONE;
      timer_t timer{};
      if (::timer_create(clock, &none, &timer) == 0 && ::timer_settime(timer, flags, &value, nullptr) == 0) {
        timers.emplace_back(clock, timer);
      }
    }
  }
  ASSERT_GE(files.size(), 4U);
  ASSERT_GE(timers.size(), 4U);
  checkpoint_here();
  for (const auto& [clock, file] : files) {
    EXPECT_NEAR(left_of(file), kWait - 30, 32) << "timerfd of clock " << clock;
  }
  for (const auto& [clock, timer] : timers) {
    EXPECT_NEAR(left_of(timer), kWait - 30, 32) << "timer of clock " << clock;
  }
  // One of an absolute time that is near.
  const timespec soon{static_cast<time_t>(now(CLOCK_BOOTTIME)) + 1, 0};
  const itimerspec value{{}, soon};
  ASSERT_EQ(::timerfd_settime(files.back().second, TFD_TIMER_ABSTIME, &value, nullptr), 0);
  std::uint64_t ticks = 0;
  EXPECT_EQ(::read(files.back().second, &ticks, sizeof ticks), static_cast<ssize_t>(sizeof ticks));
  EXPECT_GE(now(CLOCK_BOOTTIME), static_cast<double>(soon.tv_sec));
}

// The copy of one that ran on comes after the source is through: its time is over.
const Options kOneLife{.leave_running = false};

// Ends by its own clock when it was to end, although the checkpoint lies in between.
template <class Wait>
void waits_across(clockid_t clock, long number, Wait wait) {
  if (!choose(1'000'000)) {
    GTEST_SKIP() << "no time namespaces here: " << std::strerror(errno);
  }
  follow();
  const double end = now(clock) + 2;
  const timespec until{static_cast<time_t>(end), static_cast<long>((end - std::floor(end)) * 1e9)};
  checkpoint_while(number, [&] { return wait(until); });
  EXPECT_GE(now(clock), end - 0.001);
  EXPECT_LE(now(clock), end + 30);
}

LIVE_TEST_WITH(TimeNamespace, AbsoluteSleepByTheMonotonicClock, kOneLife) {
  waits_across(CLOCK_MONOTONIC, SYS_clock_nanosleep, [](const timespec& until) {
    EXPECT_EQ(::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr), 0);
    return 0;
  });
}

LIVE_TEST_WITH(TimeNamespace, AbsoluteSleepByTheBootClock, kOneLife) {
  waits_across(CLOCK_BOOTTIME, SYS_clock_nanosleep, [](const timespec& until) {
    EXPECT_EQ(::clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &until, nullptr), 0);
    return 0;
  });
}

LIVE_TEST_WITH(TimeNamespace, FutexWithAnAbsoluteTime, kOneLife) {
  waits_across(CLOCK_MONOTONIC, SYS_futex, [](const timespec& until) {
    std::uint32_t word = 1;
    EXPECT_EQ(::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 1, &until, nullptr, FUTEX_BITSET_MATCH_ANY), -1);
    EXPECT_EQ(errno, ETIMEDOUT);
    return 0;
  });
}

LIVE_TEST_WITH(TimeNamespace, ReadOfATimerfdWithAnAbsoluteTime, kOneLife) {
  waits_across(CLOCK_BOOTTIME, SYS_read, [](const timespec& until) {
    const int file = ::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC);
    const itimerspec value{{}, until};
    EXPECT_EQ(::timerfd_settime(file, TFD_TIMER_ABSTIME, &value, nullptr), 0);
    std::uint64_t ticks = 0;
    EXPECT_EQ(::read(file, &ticks, sizeof ticks), static_cast<ssize_t>(sizeof ticks));
    EXPECT_EQ(ticks, 1U);
    return 0;
  });
}

}  // namespace
}  // namespace ferry::live
