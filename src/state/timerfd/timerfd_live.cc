#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cstdint>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(Timerfd, KeepsWhatRemainsAndTheInterval) {
  const int fd = ::timerfd_create(CLOCK_MONOTONIC, 0);
  const itimerspec set{{100, 5}, {1000, 0}};
  ASSERT_EQ(::timerfd_settime(fd, 0, &set, nullptr), 0);
  checkpoint_here();
  itimerspec got{};
  ASSERT_EQ(::timerfd_gettime(fd, &got), 0);
  EXPECT_NEAR(static_cast<double>(got.it_value.tv_sec), 1000, 30);
  EXPECT_EQ(got.it_interval.tv_sec, 100);
  EXPECT_EQ(got.it_interval.tv_nsec, 5);
}

LIVE_TEST(Timerfd, KeepsUnreadTicks) {
  const int fd = ::timerfd_create(CLOCK_MONOTONIC, 0);
  const itimerspec set{{0, 0}, {0, 1}};
  ASSERT_EQ(::timerfd_settime(fd, 0, &set, nullptr), 0);
  pollfd p{fd, POLLIN, 0};
  ASSERT_EQ(::poll(&p, 1, 10000), 1) << "10 s passed and the timer has not expired";
  checkpoint_here();
  std::uint64_t ticks = 0;
  ASSERT_EQ(::poll(&p, 1, 0), 1);
  ASSERT_EQ(::read(fd, &ticks, sizeof ticks), static_cast<ssize_t>(sizeof ticks));
  EXPECT_EQ(ticks, 1U);
}

LIVE_TEST(Signalfd, StillTakesItsSignals) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGRTMIN + 3);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  const int fd = ::signalfd(-1, &set, SFD_NONBLOCK);
  checkpoint_here();
  ASSERT_EQ(::kill(::getpid(), SIGRTMIN + 3), 0);
  signalfd_siginfo info{};
  ASSERT_EQ(::read(fd, &info, sizeof info), static_cast<ssize_t>(sizeof info));
  EXPECT_EQ(info.ssi_signo, static_cast<std::uint32_t>(SIGRTMIN + 3));
}

}  // namespace
}  // namespace ferry::live
