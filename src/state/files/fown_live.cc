// Owners and signals of asynchronous I/O.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(Fown, OwnersOfEveryKindAndSignal) {
  int pair[2], other[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  ASSERT_EQ(::pipe(other), 0);
  const f_owner_ex thread{F_OWNER_TID, static_cast<pid_t>(::syscall(SYS_gettid))};
  const f_owner_ex group{F_OWNER_PGRP, ::getpgrp()};
  ASSERT_EQ(::fcntl(pair[0], F_SETOWN_EX, &thread), 0);
  ASSERT_EQ(::fcntl(pair[0], F_SETSIG, SIGRTMIN + 3), 0);
  ASSERT_EQ(::fcntl(other[0], F_SETOWN_EX, &group), 0);
  checkpoint_here();
  f_owner_ex got{};
  ASSERT_EQ(::fcntl(pair[0], F_GETOWN_EX, &got), 0);
  EXPECT_EQ(got.type, F_OWNER_TID);
  EXPECT_EQ(got.pid, thread.pid);
  EXPECT_EQ(::fcntl(pair[0], F_GETSIG), SIGRTMIN + 3);
  ASSERT_EQ(::fcntl(other[0], F_GETOWN_EX, &got), 0);
  EXPECT_EQ(got.type, F_OWNER_PGRP);
  EXPECT_EQ(got.pid, group.pid);
}

LIVE_TEST(Fown, UserThatAskedStays) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::seteuid(1234), 0);
  ASSERT_EQ(::fcntl(ends[0], F_SETOWN, ::getpid()), 0);
  ASSERT_EQ(::seteuid(0), 0);
  checkpoint_here();
  std::uint32_t uids[2] = {};
  constexpr int kGetOwnerUids = 17;
  ASSERT_EQ(::fcntl(ends[0], kGetOwnerUids, uids), 0);
  EXPECT_EQ(uids[0], 0U);
  EXPECT_EQ(uids[1], 1234U);
}

LIVE_TEST(Fown, AsynchronousInputTellsTheDescriptor) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  const int signal = SIGRTMIN + 1;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  ASSERT_EQ(::fcntl(pair[0], F_SETOWN, ::getpid()), 0);
  ASSERT_EQ(::fcntl(pair[0], F_SETSIG, signal), 0);
  ASSERT_EQ(::fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK), 0);
  checkpoint_here();
  sigset_t pending;
  ASSERT_EQ(::sigpending(&pending), 0);
  EXPECT_EQ(::sigismember(&pending, signal), 0) << "nothing has arrived yet";
  ASSERT_EQ(::write(pair[1], "x", 1), 1);
  siginfo_t info{};
  const timespec limit{5, 0};
  ASSERT_EQ(::sigtimedwait(&set, &info, &limit), signal);
  EXPECT_EQ(info.si_fd, pair[0]);
}

}  // namespace
}  // namespace ferry::live
