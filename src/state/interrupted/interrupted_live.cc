// Programs that are inside a system call when they are stopped: none may see an EINTR, and the call ends
// as if nothing had been.
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <thread>

#include "live/live.h"

namespace ferry::live {
namespace {

constexpr long kNanosecond = 1'000'000'000;
// Long enough that a dump happens within it even on a busy machine.
constexpr timespec kSleep{2, 0};

struct Outcome {
  long result = 0;
  int error = 0;
  double slept = 0;  // by the program's own clock
};

template <class Call>
Outcome timed(Call call) {
  timespec from{}, to{};
  ::clock_gettime(CLOCK_MONOTONIC, &from);
  errno = 0;
  Outcome out;
  out.result = call();
  out.error = errno;
  ::clock_gettime(CLOCK_MONOTONIC, &to);
  out.slept =
      static_cast<double>(to.tv_sec - from.tv_sec) + static_cast<double>(to.tv_nsec - from.tv_nsec) / kNanosecond;
  return out;
}

// In another thread while this one is checkpointed.
template <class Call>
Outcome across(long number, Call call) {
  return checkpoint_while(number, [&] { return timed(call); });
}

// The call in the leader, the checkpoint by another thread: the leader is the one that batches run in.
template <class Call>
Outcome across_in_leader(long number, Call call) {
  const std::atomic<pid_t> leader = ::getpid();
  std::thread thread([&] {
    EXPECT_TRUE(detail::wait_until_in_call(leader, number)) << "the leader is not in call " << number;
    checkpoint_here();
  });
  const Outcome out = timed(call);
  thread.join();
  return out;
}

// The copy of one that ran on comes after the source is through: its time is over, its objects are gone.
const Options kOneLife{.leave_running = false};
// System V semaphores of the host are not the tree's to carry, but they are still there for the copy.
const Options kOneLifeOnTheHost{.pid_namespace = false, .leave_running = false};

LIVE_TEST(Interrupted, NanosleepKeepsItsTime) {
  timespec left{9, 9};
  const Outcome out = across(SYS_nanosleep, [&] { return ::syscall(SYS_nanosleep, &kSleep, &left); });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
  EXPECT_GE(out.slept, 1.99);
}

LIVE_TEST(Interrupted, NanosleepOfTheLeader) {
  timespec time = kSleep;
  const Outcome out = across_in_leader(SYS_nanosleep, [&] { return ::syscall(SYS_nanosleep, &time, &time); });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
  EXPECT_GE(out.slept, 1.99);
}

LIVE_TEST(Interrupted, NanosleepWithoutARemainder) {
  const Outcome out = across(SYS_nanosleep, [] { return ::syscall(SYS_nanosleep, &kSleep, nullptr); });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
  EXPECT_GE(out.slept, 1.99);
}

LIVE_TEST(Interrupted, NanosleepTwiceStopped) {
  // The second time the call is restart_syscall(2).
  const timespec time{4, 0};
  timespec left{};
  std::atomic<pid_t> tid{0};
  Outcome out;
  std::thread thread([&] {
    tid = ::gettid();
    out = timed([&] { return ::syscall(SYS_nanosleep, &time, &left); });
  });
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_nanosleep));
  checkpoint_here();
  EXPECT_TRUE(detail::wait_until_in_call(tid, SYS_restart_syscall));
  checkpoint_here();
  thread.join();
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
  EXPECT_GE(out.slept, 3.98);
}

LIVE_TEST(Interrupted, ClockNanosleepRelative) {
  timespec left{};
  const Outcome out =
      across(SYS_clock_nanosleep, [&] { return ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &kSleep, &left); });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
  EXPECT_GE(out.slept, 1.99);
}

LIVE_TEST_WITH(Interrupted, ClockNanosleepAbsolute, kOneLife) {
  timespec until{};
  ::clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += 2;
  const Outcome out = across(SYS_clock_nanosleep, [&] {
    return ::syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
  });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
}

LIVE_TEST(Interrupted, PollTimesOut) {
  const Outcome out = across(SYS_poll, [] { return ::syscall(SYS_poll, nullptr, 0, 2000); });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
  EXPECT_GE(out.slept, 1.99);
}

LIVE_TEST(Interrupted, PpollTimesOut) {
  timespec time = kSleep;
  const Outcome out = across(SYS_ppoll, [&] { return ::syscall(SYS_ppoll, nullptr, 0, &time, nullptr, 8); });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
}

LIVE_TEST(Interrupted, SelectTimesOut) {
  timeval time{2, 0};
  const Outcome out = across(SYS_select, [&] { return ::syscall(SYS_select, 0, nullptr, nullptr, nullptr, &time); });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
}

LIVE_TEST(Interrupted, SelectOfTheLeader) {
  timeval time{2, 0};
  const Outcome out =
      across_in_leader(SYS_select, [&] { return ::syscall(SYS_select, 0, nullptr, nullptr, nullptr, &time); });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
}

LIVE_TEST(Interrupted, FutexWaitTimesOut) {
  static int word = 1;
  const Outcome out =
      across(SYS_futex, [] { return ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &kSleep, nullptr, 0); });
  EXPECT_EQ(out.result, -1);
  EXPECT_EQ(out.error, ETIMEDOUT);
  EXPECT_GE(out.slept, 1.99);
}

LIVE_TEST_WITH(Interrupted, FutexWaitBitsetKeepsItsAbsoluteTime, kOneLife) {
  static int word = 1;
  timespec until{};
  ::clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += 2;
  const Outcome out = across(SYS_futex, [&] {
    return ::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 1, &until, nullptr, FUTEX_BITSET_MATCH_ANY);
  });
  EXPECT_EQ(out.result, -1);
  EXPECT_EQ(out.error, ETIMEDOUT);
}

LIVE_TEST(Interrupted, FutexWaitIsWoken) {
  static int word = 1;
  std::atomic<pid_t> tid{0};
  Outcome out;
  std::thread thread([&] {
    tid = ::gettid();
    const timespec hour{3600, 0};
    out = timed([&] { return ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 1, &hour, nullptr, 0); });
  });
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_futex));
  checkpoint_here();
  // It may not be back in its wait yet: until it is, nobody is woken.
  while (::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0) == 0) {
    ::sched_yield();
  }
  thread.join();
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
}

LIVE_TEST(Interrupted, EpollWaitTimesOut) {
  const int epoll = ::epoll_create1(0);
  const Outcome out = across(SYS_epoll_wait, [&] {
    epoll_event event{};
    return ::syscall(SYS_epoll_wait, epoll, &event, 1, 2000);
  });
  EXPECT_EQ(out.result, 0) << "errno " << out.error;
}

LIVE_TEST(Interrupted, SigtimedwaitTimesOut) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  const Outcome out = across(SYS_rt_sigtimedwait, [&] {
    const timespec time = kSleep;
    return ::syscall(SYS_rt_sigtimedwait, &set, nullptr, &time, 8);
  });
  EXPECT_EQ(out.result, -1);
  EXPECT_EQ(out.error, EAGAIN);
}

LIVE_TEST(Interrupted, PauseIsEndedByASignalOnly) {
  ASSERT_NE(::signal(SIGUSR1, [](int) {}), SIG_ERR);
  std::atomic<pid_t> tid{0};
  std::atomic<bool> ended{false};
  Outcome out;
  std::thread thread([&] {
    tid = ::gettid();
    out = timed([] { return ::syscall(SYS_pause); });
    ended = true;
  });
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_pause));
  checkpoint_here();
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_pause));
  EXPECT_FALSE(ended);
  ASSERT_EQ(::syscall(SYS_tgkill, ::getpid(), tid.load(), SIGUSR1), 0);
  thread.join();
  EXPECT_EQ(out.error, EINTR) << "this one the program expects";
}

LIVE_TEST(Interrupted, SigsuspendKeepsTheMaskItReturnsTo) {
  sigset_t block, none, got;
  sigemptyset(&none);
  sigemptyset(&block);
  sigaddset(&block, SIGUSR1);
  ASSERT_NE(::signal(SIGUSR1, [](int) {}), SIG_ERR);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &block, nullptr), 0);
  std::atomic<pid_t> tid{0};
  std::thread thread([&] {
    tid = ::gettid();
    ::syscall(SYS_rt_sigsuspend, &none, 8);
    ::pthread_sigmask(SIG_BLOCK, nullptr, &got);
  });
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_rt_sigsuspend));
  checkpoint_here();
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_rt_sigsuspend));
  ASSERT_EQ(::syscall(SYS_tgkill, ::getpid(), tid.load(), SIGUSR1), 0);
  thread.join();
  EXPECT_EQ(sigismember(&got, SIGUSR1), 1);
}

LIVE_TEST(Interrupted, ReadOnAPipeGetsWhatIsWrittenLater) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::atomic<pid_t> tid{0};
  Outcome out;
  char got = 0;
  std::thread thread([&] {
    tid = ::gettid();
    out = timed([&] { return ::syscall(SYS_read, ends[0], &got, 1); });
  });
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_read));
  checkpoint_here();
  ASSERT_EQ(::write(ends[1], "x", 1), 1);
  thread.join();
  EXPECT_EQ(out.result, 1) << "errno " << out.error;
  EXPECT_EQ(got, 'x');
}

LIVE_TEST_WITH(Interrupted, SemtimedopTimesOut, kOneLifeOnTheHost) {
  const int id = ::semget(IPC_PRIVATE, 1, 0600);
  ASSERT_GE(id, 0);
  const Outcome out = across(SYS_semtimedop, [&] {
    sembuf take{0, -1, 0};
    return ::syscall(SYS_semtimedop, id, &take, 1, &kSleep);
  });
  ::semctl(id, 0, IPC_RMID);
  EXPECT_EQ(out.result, -1);
  EXPECT_EQ(out.error, EAGAIN);
}

LIVE_TEST(Interrupted, RecvWithATimeoutTimesOut) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const timeval time{2, 0};
  ASSERT_EQ(::setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), 0);
  char got = 0;
  const Outcome out =
      across(SYS_recvfrom, [&] { return ::syscall(SYS_recvfrom, ends[0], &got, 1, 0, nullptr, nullptr); });
  EXPECT_EQ(out.result, -1);
  EXPECT_EQ(out.error, EAGAIN);
}

}  // namespace
}  // namespace ferry::live
