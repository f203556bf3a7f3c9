#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "live/live.h"

namespace ferry::live {
namespace {

void handler(int) {}

struct KernelAction {
  void (*handler)(int);
  unsigned long flags;
  void (*restorer)();
  unsigned long mask;
};

LIVE_TEST(Signals, KeepsTheBlockedMask) {
  sigset_t wanted, got;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGUSR1);
  sigaddset(&wanted, SIGRTMAX);
  ASSERT_EQ(::sigprocmask(SIG_SETMASK, &wanted, nullptr), 0);
  checkpoint_here();
  ASSERT_EQ(::sigprocmask(SIG_SETMASK, nullptr, &got), 0);
  for (int signal = 1; signal <= SIGRTMAX; ++signal) {
    EXPECT_EQ(sigismember(&got, signal), sigismember(&wanted, signal)) << "signal " << signal;
  }
}

LIVE_TEST(Signals, KeepsEveryAction) {
  for (int signal = 1; signal <= 64; ++signal) {
    if (signal == SIGKILL || signal == SIGSTOP) {
      continue;
    }
    KernelAction action{};
    action.handler = signal % 3 == 0 ? SIG_IGN : signal % 3 == 1 ? handler : SIG_DFL;
    action.flags = signal % 2 == 0 ? SA_RESTART | SA_SIGINFO : static_cast<unsigned long>(SA_NODEFER);
    action.mask = 1UL << (signal % 64);
    ASSERT_EQ(::syscall(SYS_rt_sigaction, signal, &action, nullptr, 8), 0) << signal;
  }
  KernelAction before[65]{}, after[65]{};
  const auto read_all = [](KernelAction(&into)[65]) {
    for (int signal = 1; signal <= 64; ++signal) {
      ::syscall(SYS_rt_sigaction, signal, nullptr, &into[signal], 8);
    }
  };
  read_all(before);
  checkpoint_here();
  read_all(after);
  EXPECT_EQ(std::memcmp(before, after, sizeof before), 0);
}

LIVE_TEST(Signals, AnIgnoredTrapStaysIgnored) {
  ASSERT_NE(::signal(SIGTRAP, SIG_IGN), SIG_ERR);
  checkpoint_here();
  EXPECT_EQ(::signal(SIGTRAP, SIG_IGN), SIG_IGN);
}

LIVE_TEST(Signals, KeepsWhatIsPendingWithItsData) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGRTMIN);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  for (int i = 1; i <= 3; ++i) {
    sigval value{};
    value.sival_int = 100 + i;
    ASSERT_EQ(::sigqueue(::getpid(), SIGRTMIN, value), 0);
  }
  ASSERT_EQ(::raise(SIGUSR1), 0);  // to this thread, SI_TKILL
  checkpoint_here();
  const timespec none{};
  siginfo_t info{};
  ASSERT_EQ(::sigtimedwait(&set, &info, &none), SIGUSR1);
  EXPECT_EQ(info.si_code, SI_USER);  // the C library shows SI_TKILL as this
  EXPECT_EQ(info.si_pid, ::getpid());
  for (int i = 1; i <= 3; ++i) {
    ASSERT_EQ(::sigtimedwait(&set, &info, &none), SIGRTMIN);
    EXPECT_EQ(info.si_code, SI_QUEUE);
    EXPECT_EQ(info.si_value.sival_int, 100 + i) << "in the order in which they were sent";
  }
  EXPECT_EQ(::sigtimedwait(&set, &info, &none), -1) << "nothing is pending twice";
}

LIVE_TEST(Signals, KeepsTheAlternateStack) {
  static char memory[64 * 1024];
  stack_t stack{}, got{};
  stack.ss_sp = memory;
  stack.ss_size = sizeof memory;
  ASSERT_EQ(::sigaltstack(&stack, nullptr), 0);
  checkpoint_here();
  ASSERT_EQ(::sigaltstack(nullptr, &got), 0);
  EXPECT_EQ(got.ss_sp, memory);
  EXPECT_EQ(got.ss_size, sizeof memory);
  EXPECT_EQ(got.ss_flags, 0);
}

LIVE_TEST(Signals, ThreadsHaveTheirOwnMasksStacksAndQueues) {
  std::atomic<int> stage{0};
  bool masked = false, stacked = false, pending = false;
  std::thread thread([&] {
    static char memory[64 * 1024];
    stack_t stack{}, got{};
    stack.ss_sp = memory;
    stack.ss_size = sizeof memory;
    ::sigaltstack(&stack, nullptr);
    sigset_t set, now;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
    ::pthread_kill(::pthread_self(), SIGUSR2);
    stage = 1;
    while (stage == 1) {
      ::sched_yield();
    }
    ::pthread_sigmask(SIG_BLOCK, nullptr, &now);
    masked = sigismember(&now, SIGUSR2) == 1 && sigismember(&now, SIGUSR1) == 0;
    stacked = ::sigaltstack(nullptr, &got) == 0 && got.ss_sp == memory;
    const timespec none{};
    pending = ::sigtimedwait(&set, nullptr, &none) == SIGUSR2;
  });
  while (stage == 0) {
    ::sched_yield();
  }
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_TRUE(masked);
  EXPECT_TRUE(stacked);
  EXPECT_TRUE(pending);
}

LIVE_TEST(Signals, KeepsTheParentDeathSignal) {
  ASSERT_EQ(::prctl(PR_SET_PDEATHSIG, SIGUSR1), 0);
  ASSERT_NE(::signal(SIGUSR1, SIG_IGN), SIG_ERR);  // the restored one may get another parent
  checkpoint_here();
  int got = 0;
  ASSERT_EQ(::prctl(PR_GET_PDEATHSIG, &got), 0);
  EXPECT_EQ(got, SIGUSR1);
}

}  // namespace
}  // namespace ferry::live
