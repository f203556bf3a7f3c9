#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cstdint>
#include <ctime>
#include <fstream>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string told_of(int fd, const std::string& field) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(fd));
  for (std::string line; std::getline(info, line);) {
    if (line.rfind(field + ":", 0) == 0) {
      return line.substr(field.size() + 2);
    }
  }
  return "";
}

LIVE_TEST(Timerfd, OfEveryClockAndFlag) {
  const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM};
  int fds[5];
  for (int i = 0; i < 5; ++i) {
    fds[i] = ::timerfd_create(clocks[i], i % 2 == 0 ? TFD_NONBLOCK : TFD_CLOEXEC);
    if (fds[i] < 0) {
      continue;  // alarm clocks are a privilege
    }
    const itimerspec in{{100, 5}, {1000, 0}};
    ASSERT_EQ(::timerfd_settime(fds[i], 0, &in, nullptr), 0);
  }
  const int cancels = ::timerfd_create(CLOCK_REALTIME, 0);
  itimerspec at{{0, 0}, {::time(nullptr) + 5000, 0}};
  ASSERT_EQ(::timerfd_settime(cancels, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &at, nullptr), 0);
  const int disarmed = ::timerfd_create(CLOCK_MONOTONIC, 0);
  checkpoint_here();
  for (int i = 0; i < 5; ++i) {
    if (fds[i] >= 0) {
      itimerspec left{};
      ASSERT_EQ(::timerfd_gettime(fds[i], &left), 0);
      EXPECT_GT(left.it_value.tv_sec, 900) << i;
      EXPECT_LE(left.it_value.tv_sec, 1000) << i;
      EXPECT_EQ(left.it_interval.tv_sec, 100);
      EXPECT_EQ(left.it_interval.tv_nsec, 5);
      EXPECT_EQ(told_of(fds[i], "clockid"), std::to_string(clocks[i]));
    }
  }
  EXPECT_EQ(told_of(cancels, "settime flags"), "03");
  itimerspec left{};
  ASSERT_EQ(::timerfd_gettime(cancels, &left), 0);
  EXPECT_GT(left.it_value.tv_sec, 4900);
  ASSERT_EQ(::timerfd_gettime(disarmed, &left), 0);
  EXPECT_EQ(left.it_value.tv_sec, 0);
}

LIVE_TEST(Signalfd, KeepsItsMaskItsFlagsAndWhatIsPending) {
  sigset_t two;
  sigemptyset(&two);
  sigaddset(&two, SIGUSR1);
  sigaddset(&two, SIGRTMIN + 3);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &two, nullptr), 0);
  const int fd = ::signalfd(-1, &two, SFD_NONBLOCK | SFD_CLOEXEC);
  const int epoll = ::epoll_create1(0);
  epoll_event event{EPOLLIN, {.u64 = 7}};
  ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
  const sigval value{.sival_int = 99};
  ASSERT_EQ(::sigqueue(::getpid(), SIGRTMIN + 3, value), 0);
  ASSERT_EQ(::kill(::getpid(), SIGUSR1), 0);
  checkpoint_here();
  EXPECT_EQ(::epoll_wait(epoll, &event, 1, 0), 1);
  EXPECT_EQ(event.data.u64, 7U);
  signalfd_siginfo info{};
  ASSERT_EQ(::read(fd, &info, sizeof info), static_cast<ssize_t>(sizeof info));
  EXPECT_EQ(info.ssi_signo, static_cast<unsigned>(SIGUSR1));
  ASSERT_EQ(::read(fd, &info, sizeof info), static_cast<ssize_t>(sizeof info));
  EXPECT_EQ(info.ssi_int, 99);
  EXPECT_EQ(::read(fd, &info, sizeof info), -1) << "nothing else, and it does not wait";
}

}  // namespace
}  // namespace ferry::live
