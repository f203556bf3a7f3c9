#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>

#include "live/live.h"

namespace ferry::live {
namespace {

// Fails one system call with a number of its own and allows the rest.
bool forbid(unsigned call, unsigned error, unsigned flags = 0) {
  sock_filter code[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, call},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | error},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog program{4, code};
  return ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0;
}
int error_of(long call) {
  errno = 0;
  return ::syscall(call) == -1 ? errno : 0;
}

LIVE_TEST(Seccomp, KeepsAChainOfFilters) {
  ASSERT_TRUE(forbid(SYS_getppid, 41));
  ASSERT_TRUE(forbid(SYS_getuid, 42, SECCOMP_FILTER_FLAG_LOG));
  // Of two filters with the same action the newest decides which number: the order is kept.
  ASSERT_TRUE(forbid(SYS_getppid, 43));
  ASSERT_EQ(error_of(SYS_getppid), 43);
  checkpoint_here();
  EXPECT_EQ(error_of(SYS_getppid), 43);
  EXPECT_EQ(error_of(SYS_getuid), 42);
  EXPECT_EQ(error_of(SYS_getgid), 0);
}

LIVE_TEST(Seccomp, AFilterMayForbidWhatARestoreNeeds) {
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  for (const unsigned call :
       {SYS_prctl, SYS_rt_sigaction, SYS_mmap, SYS_munmap, SYS_setresuid, SYS_capset, SYS_seccomp}) {
    if (call != SYS_seccomp) {
      ASSERT_TRUE(forbid(call, 44));
    }
  }
  ASSERT_TRUE(forbid(SYS_seccomp, 44));
  checkpoint_here();
  EXPECT_EQ(error_of(SYS_prctl), 44);
  EXPECT_EQ(error_of(SYS_seccomp), 44);
  EXPECT_EQ(error_of(SYS_munmap), 44);
}

LIVE_TEST(Seccomp, ThreadsMayDiffer) {
  std::atomic<int> stage{0};
  int error = 0;
  ASSERT_TRUE(forbid(SYS_getuid, 42));
  std::thread thread([&] {
    const bool done = forbid(SYS_getppid, 45);
    stage = done ? 1 : 3;
    while (stage == 1) {
      ::sched_yield();
    }
    error = error_of(SYS_getppid);
  });
  while (stage == 0) {
    ::sched_yield();
  }
  ASSERT_EQ(stage, 1);
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_EQ(error, 45);
  EXPECT_EQ(error_of(SYS_getppid), 0);
  EXPECT_EQ(error_of(SYS_getuid), 42);
}

LIVE_TEST(Seccomp, KeepsStrictMode) {
  // Any call but read, write, exit and sigreturn kills now; what /proc shows is compared by the harness.
  ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT), 0);
  checkpoint_without_calls();
  char nothing = 0;
  EXPECT_EQ(::syscall(SYS_read, -1, &nothing, 1), -1);
  finish_without_calls();
}

LIVE_TEST_WITH(Seccomp, RefusesASupervisedFilter, Options{.refused = "seccomp filter that asks a supervisor"}) {
  sock_filter code[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_acct},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_USER_NOTIF},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog program{4, code};
  ASSERT_EQ(::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), 0);
  checkpoint_here();
  EXPECT_EQ(error_of(SYS_getpid), 0);
}

}  // namespace
}  // namespace ferry::live
