// Watches that are hard to make again.
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>

#include "live/live.h"

namespace ferry::live {
namespace {

void add(int epoll, int fd, std::uint32_t events, std::uint64_t data) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = data;
  ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
}

std::set<std::uint64_t> ready(int epoll) {
  epoll_event events[16];
  std::set<std::uint64_t> out;
  const int n = ::epoll_wait(epoll, events, 16, 0);
  for (int i = 0; i < n; ++i) {
    out.insert(events[i].data.u64);
  }
  return out;
}

LIVE_TEST(Epoll, Nested) {
  const int inner = ::epoll_create1(0), outer = ::epoll_create1(EPOLL_CLOEXEC), counter = ::eventfd(0, EFD_NONBLOCK);
  add(inner, counter, EPOLLIN, 1);
  add(outer, inner, EPOLLIN, 2);
  checkpoint_here();
  EXPECT_TRUE(ready(outer).empty());
  ASSERT_EQ(::eventfd_write(counter, 1), 0);
  EXPECT_EQ(ready(outer), (std::set<std::uint64_t>{2}));
  EXPECT_EQ(ready(inner), (std::set<std::uint64_t>{1}));
}

// The watcher has to be woken by the signal, not only to find it when it looks: two processes, each with a
// list of its own, wake each other as databases do that use a signal for a latch.
LIVE_TEST(Epoll, SignalfdWakesWhoSleeps) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGURG);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  const pid_t parent = ::getpid();
  const auto wait_for_signal = [&](int epoll, int fd) {
    epoll_event event{};
    signalfd_siginfo info{};
    return ::epoll_wait(epoll, &event, 1, 10'000) == 1 && ::read(fd, &info, sizeof info) == sizeof info &&
           info.ssi_signo == SIGURG;
  };
  const auto make = [&](int& epoll, int& fd) {
    epoll = ::epoll_create1(EPOLL_CLOEXEC);
    fd = ::signalfd(-1, &set, SFD_NONBLOCK);
    epoll_event event{};
    event.events = EPOLLIN;
    return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
  };
  int epoll = -1, fd = -1, told[2];
  ASSERT_TRUE(make(epoll, fd));
  ASSERT_EQ(::pipe2(told, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    int own = -1, own_fd = -1;
    if (!make(own, own_fd) || ::write(told[1], "", 1) != 1) {
      ::_exit(1);
    }
    for (int i = 0; i < 3; ++i) {
      if (!wait_for_signal(own, own_fd) || ::kill(parent, SIGURG) != 0) {
        ::_exit(2);
      }
    }
    ::_exit(0);
  }
  char byte;
  ASSERT_EQ(::read(told[0], &byte, 1), 1);
  checkpoint_here();
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(::kill(child, SIGURG), 0);
    ASSERT_TRUE(wait_for_signal(epoll, fd)) << "round " << i;
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

LIVE_TEST(Epoll, WatchOfANumberThatIsClosedOrSomethingElseNow) {
  const int epoll = ::epoll_create1(0);
  const int counter = ::eventfd(0, EFD_NONBLOCK), second = ::eventfd(0, EFD_NONBLOCK);
  const int alias = ::dup(counter), other_alias = ::dup(second);
  add(epoll, alias, EPOLLIN, 7);
  add(epoll, other_alias, EPOLLIN, 8);
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  ::close(alias);
  ASSERT_EQ(::dup2(pipe_ends[0], other_alias), other_alias);
  add(epoll, other_alias, EPOLLIN, 9);  // the same number, another file
  checkpoint_here();
  EXPECT_TRUE(ready(epoll).empty());
  ASSERT_EQ(::eventfd_write(counter, 1), 0);
  EXPECT_EQ(ready(epoll), (std::set<std::uint64_t>{7}));
  ASSERT_EQ(::eventfd_write(second, 1), 0);
  EXPECT_EQ(ready(epoll), (std::set<std::uint64_t>{7, 8}));
  ASSERT_EQ(::write(pipe_ends[1], "x", 1), 1);
  EXPECT_EQ(ready(epoll), (std::set<std::uint64_t>{7, 8, 9}));
  EXPECT_EQ(::fcntl(alias, F_GETFD), -1);
}

LIVE_TEST(Epoll, EdgeThatWasSeenIsNotToldAgain) {
  const int epoll = ::epoll_create1(0);
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  add(epoll, pair[0], EPOLLIN | EPOLLET, 3);
  ASSERT_EQ(::write(pair[1], "x", 1), 1);
  ASSERT_EQ(ready(epoll), (std::set<std::uint64_t>{3}));
  checkpoint_here();
  EXPECT_TRUE(ready(epoll).empty());
  ASSERT_EQ(::write(pair[1], "y", 1), 1);
  EXPECT_EQ(ready(epoll), (std::set<std::uint64_t>{3}));
}

LIVE_TEST(Epoll, EdgeThatWasNotSeenIsTold) {
  const int epoll = ::epoll_create1(0);
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  add(epoll, pair[0], EPOLLIN | EPOLLET, 3);
  ASSERT_EQ(::write(pair[1], "x", 1), 1);
  checkpoint_here();
  EXPECT_EQ(ready(epoll), (std::set<std::uint64_t>{3}));
}

LIVE_TEST(Epoll, OneShotThatWentOffStaysOff) {
  const int epoll = ::epoll_create1(0);
  const int counter = ::eventfd(1, EFD_NONBLOCK), armed = ::eventfd(0, EFD_NONBLOCK);
  add(epoll, counter, EPOLLIN | EPOLLONESHOT, 4);
  add(epoll, armed, EPOLLIN | EPOLLONESHOT, 5);
  ASSERT_EQ(ready(epoll), (std::set<std::uint64_t>{4}));
  checkpoint_here();
  EXPECT_TRUE(ready(epoll).empty());
  ASSERT_EQ(::eventfd_write(counter, 1), 0);
  EXPECT_TRUE(ready(epoll).empty());
  ASSERT_EQ(::eventfd_write(armed, 1), 0);
  EXPECT_EQ(ready(epoll), (std::set<std::uint64_t>{5}));
}

}  // namespace
}  // namespace ferry::live
