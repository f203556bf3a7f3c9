#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "live/live.h"
#include "live/other_thread.h"

namespace ferry::live {
namespace {

int open_pidfd(pid_t pid, unsigned flags = 0) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, flags)); }
int send(int fd, int signal) { return static_cast<int>(::syscall(SYS_pidfd_send_signal, fd, signal, nullptr, 0)); }
bool over(int fd) {
  pollfd p{fd, POLLIN, 0};
  return ::poll(&p, 1, 0) == 1;
}

LIVE_TEST(Pidfd, OfALivingAZombieAndADeadProcess) {
  const pid_t living = ::fork();
  if (living == 0) {
    for (;;) {
      ::pause();
    }
  }
  const pid_t zombie = ::fork();
  if (zombie == 0) {
    ::_exit(3);
  }
  const pid_t dead = ::fork();
  if (dead == 0) {
    ::_exit(0);
  }
  const int of_living = open_pidfd(living), of_zombie = open_pidfd(zombie), of_dead = open_pidfd(dead);
  const int again = open_pidfd(dead);
  ASSERT_GE(again, 0);
  ASSERT_EQ(::waitpid(dead, nullptr, 0), dead);
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(zombie), &info, WEXITED | WNOWAIT), 0);
  checkpoint_here();
  EXPECT_FALSE(over(of_living));
  EXPECT_TRUE(over(of_zombie));
  EXPECT_TRUE(over(of_dead));
  EXPECT_EQ(send(of_dead, 0), -1);
  EXPECT_EQ(errno, ESRCH);
  struct stat a {};
  struct stat b {};
  ASSERT_EQ(::fstat(of_dead, &a), 0);
  ASSERT_EQ(::fstat(again, &b), 0);
  EXPECT_EQ(a.st_ino, b.st_ino) << "two descriptors of one process";
  int status = 0;
  EXPECT_EQ(::waitpid(zombie, &status, 0), zombie);
  EXPECT_EQ(WEXITSTATUS(status), 3);
  EXPECT_EQ(send(of_living, SIGTERM), 0);
  EXPECT_EQ(::waitpid(living, &status, 0), living);
  EXPECT_TRUE(over(of_living));
}

LIVE_TEST(Pidfd, OfAThread) {
  constexpr unsigned kThread = 0200;  // PIDFD_THREAD: O_EXCL
  OtherThread other;
  const int fd = open_pidfd(other.tid(), kThread), self = open_pidfd(::getpid());
  if (fd < 0) {
    GTEST_SKIP() << "no PIDFD_THREAD";
  }
  checkpoint_here();
  EXPECT_FALSE(over(fd));
  EXPECT_EQ(send(self, 0), 0);
  other.end();
  pollfd p{fd, POLLIN, 0};
  EXPECT_EQ(::poll(&p, 1, 5000), 1);
  EXPECT_FALSE(over(self));
}

}  // namespace
}  // namespace ferry::live
