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

volatile int depth_seen = 0;
bool stack_in_use = false, inner_blocked = false;

LIVE_TEST(Signals, AHandlerInAHandlerOnItsOwnStackGoesOn) {
  static char memory[256 * 1024];
  stack_t stack{};
  stack.ss_sp = memory;
  stack.ss_size = sizeof memory;
  ASSERT_EQ(::sigaltstack(&stack, nullptr), 0);
  struct sigaction outer {};
  struct sigaction inner {};
  outer.sa_flags = SA_ONSTACK;
  outer.sa_handler = [](int) {
    volatile int here = 4711;
    ::raise(SIGUSR2);
    depth_seen = depth_seen * 10 + (here == 4711 ? 2 : 9);
  };
  inner.sa_flags = SA_ONSTACK;
  sigemptyset(&inner.sa_mask);
  sigaddset(&inner.sa_mask, SIGHUP);
  inner.sa_handler = [](int) {
    checkpoint_here();
    stack_t now{};
    sigset_t mask;
    stack_in_use = ::sigaltstack(nullptr, &now) == 0 && now.ss_flags == SS_ONSTACK;
    ::sigprocmask(SIG_BLOCK, nullptr, &mask);
    inner_blocked =
        sigismember(&mask, SIGUSR1) == 1 && sigismember(&mask, SIGUSR2) == 1 && sigismember(&mask, SIGHUP) == 1;
    depth_seen = 1;
  };
  ASSERT_EQ(::sigaction(SIGUSR1, &outer, nullptr), 0);
  ASSERT_EQ(::sigaction(SIGUSR2, &inner, nullptr), 0);
  ::raise(SIGUSR1);
  EXPECT_EQ(depth_seen, 12);
  EXPECT_TRUE(stack_in_use);
  EXPECT_TRUE(inner_blocked);
  sigset_t mask;
  ::sigprocmask(SIG_BLOCK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGUSR1), 0);
  ASSERT_EQ(::sigaltstack(nullptr, &stack), 0);
  EXPECT_EQ(stack.ss_flags, 0);
}

LIVE_TEST(Signals, KeepsAStackThatDisarmsItself) {
  static char memory[64 * 1024];
  stack_t stack{}, got{};
  stack.ss_sp = memory;
  stack.ss_size = sizeof memory;
  constexpr int kAutodisarm = static_cast<int>(1U << 31);  // SS_AUTODISARM
  stack.ss_flags = kAutodisarm;
  ASSERT_EQ(::sigaltstack(&stack, nullptr), 0);
  checkpoint_here();
  ASSERT_EQ(::sigaltstack(nullptr, &got), 0);
  EXPECT_EQ(got.ss_sp, memory);
  EXPECT_EQ(got.ss_flags, kAutodisarm);
}

LIVE_TEST(Signals, KeepsEveryKindOfSender) {
  sigset_t all;
  sigfillset(&all);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &all, nullptr), 0);
  // Negative codes anybody may send, others only to itself (rt_sigqueueinfo(2)).
  const int codes[] = {SI_QUEUE, SI_TIMER, SI_MESGQ, SI_ASYNCIO, SI_SIGIO, SI_ASYNCNL, SI_USER, SI_KERNEL, POLL_IN};
  int value = 0;
  for (const int code : codes) {
    siginfo_t info{};
    info.si_signo = SIGRTMIN + 5;
    info.si_code = code;
    info.si_pid = ::getpid();
    info.si_value.sival_int = ++value;
    ASSERT_EQ(::syscall(SYS_rt_sigqueueinfo, ::getpid(), info.si_signo, &info), 0) << code;
    info.si_signo = SIGRTMIN + 6;
    ASSERT_EQ(::syscall(SYS_rt_tgsigqueueinfo, ::getpid(), ::gettid(), info.si_signo, &info), 0) << code;
  }
  checkpoint_here();
  const timespec none{};
  for (const int signal : {SIGRTMIN + 5, SIGRTMIN + 6}) {
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, signal);
    value = 0;
    for (const int code : codes) {
      siginfo_t info{};
      ASSERT_EQ(::syscall(SYS_rt_sigtimedwait, &one, &info, &none, 8), signal);
      EXPECT_EQ(info.si_code, code);
      EXPECT_EQ(info.si_value.sival_int, ++value);
    }
    EXPECT_EQ(::syscall(SYS_rt_sigtimedwait, &one, nullptr, &none, 8), -1);
  }
}

LIVE_TEST(Signals, KeepsALongQueue) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMAX);
  sigaddset(&set, SIGRTMIN);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  constexpr int kMany = 200;
  for (int i = 0; i < kMany; ++i) {
    sigval value{};
    value.sival_int = i;
    ASSERT_EQ(::sigqueue(::getpid(), i % 2 == 0 ? SIGRTMAX : SIGRTMIN, value), 0);
  }
  checkpoint_here();
  const timespec none{};
  for (const int parity : {1, 0}) {  // the lower number first (signal(7))
    for (int i = parity; i < kMany; i += 2) {
      siginfo_t info{};
      ASSERT_EQ(::sigtimedwait(&set, &info, &none), parity == 0 ? SIGRTMAX : SIGRTMIN);
      ASSERT_EQ(info.si_value.sival_int, i);
    }
  }
  EXPECT_EQ(::sigtimedwait(&set, nullptr, &none), -1);
}

LIVE_TEST(Signals, AHandlerWaitsForWhatIsPendingAndIgnored) {
  // Blocked, ignored by nobody: SIGCHLD, SIGURG, SIGWINCH and SIGCONT are thrown away by default actions only.
  struct sigaction action {};
  action.sa_handler = handler;
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGCHLD, SIGURG, SIGWINCH, SIGCONT, SIGTRAP}) {
    ASSERT_EQ(::sigaction(signal, &action, nullptr), 0);
    sigaddset(&set, signal);
  }
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  for (const int signal : {SIGCHLD, SIGURG, SIGWINCH, SIGCONT, SIGTRAP}) {
    ASSERT_EQ(::kill(::getpid(), signal), 0);
  }
  checkpoint_here();
  sigset_t pending;
  ASSERT_EQ(::sigpending(&pending), 0);
  for (const int signal : {SIGCHLD, SIGURG, SIGWINCH, SIGCONT, SIGTRAP}) {
    EXPECT_EQ(sigismember(&pending, signal), 1) << signal;
  }
}

}  // namespace
}  // namespace ferry::live
