#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "live/live.h"

#ifndef SCHED_DEADLINE
#define SCHED_DEADLINE 6  // sched(7)
#endif

namespace ferry::live {
namespace {

LIVE_TEST(Limits, KeepsResourceLimits) {
  const rlimit core{12345, 67890}, files{200, 250}, stack{4U << 20, 16U << 20};
  ASSERT_EQ(::setrlimit(RLIMIT_CORE, &core), 0);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
  ASSERT_EQ(::setrlimit(RLIMIT_STACK, &stack), 0);
  checkpoint_here();
  rlimit got{};
  ASSERT_EQ(::getrlimit(RLIMIT_CORE, &got), 0);
  EXPECT_EQ(got.rlim_cur, 12345U);
  EXPECT_EQ(got.rlim_max, 67890U);
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &got), 0);
  EXPECT_EQ(got.rlim_cur, 200U);
  EXPECT_EQ(got.rlim_max, 250U);
  ASSERT_EQ(::getrlimit(RLIMIT_STACK, &got), 0);
  EXPECT_EQ(got.rlim_cur, 4U << 20);
}

LIVE_TEST(Limits, KeepsSchedulingOfEveryThread) {
  std::atomic<int> stage{0};
  int policy = -1, nice = -100, reset = -1;
  std::thread thread([&] {
    const sched_param zero{};
    ::sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &zero);
    ::setpriority(PRIO_PROCESS, 0, 7);
    stage = 1;
    while (stage == 1) {
      ::sched_yield();
    }
    const int got = ::sched_getscheduler(0);
    policy = got & ~SCHED_RESET_ON_FORK;
    reset = got & SCHED_RESET_ON_FORK;
    nice = ::getpriority(PRIO_PROCESS, 0);
  });
  while (stage == 0) {
    ::sched_yield();
  }
  ASSERT_EQ(::setpriority(PRIO_PROCESS, 0, 3), 0);
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_EQ(policy, SCHED_BATCH);
  EXPECT_NE(reset, 0);
  EXPECT_EQ(nice, 7);
  EXPECT_EQ(::getpriority(PRIO_PROCESS, 0), 3);
  EXPECT_EQ(::sched_getscheduler(0), SCHED_OTHER);
}

LIVE_TEST(Limits, KeepsARealTimePriority) {
  sched_param param{};
  param.sched_priority = 5;
  if (::sched_setscheduler(0, SCHED_RR, &param) != 0) {
    GTEST_SKIP() << "this machine grants no real-time priority here: " << std::strerror(errno);
  }
  checkpoint_here();
  EXPECT_EQ(::sched_getscheduler(0), SCHED_RR);
  ASSERT_EQ(::sched_getparam(0, &param), 0);
  EXPECT_EQ(param.sched_priority, 5);
}

LIVE_TEST(Limits, KeepsAffinityAndIoPriority) {
  cpu_set_t all, one, got;
  ASSERT_EQ(::sched_getaffinity(0, sizeof all, &all), 0);
  if (CPU_COUNT(&all) < 2) {
    GTEST_SKIP() << "needs two processors";
  }
  CPU_ZERO(&one);
  CPU_SET(1, &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  constexpr int kIdleClass = 3 << 13;
  ASSERT_EQ(::syscall(SYS_ioprio_set, 1, 0, kIdleClass), 0);
  checkpoint_here();
  ASSERT_EQ(::sched_getaffinity(0, sizeof got, &got), 0);
  EXPECT_TRUE(CPU_EQUAL(&got, &one));
  EXPECT_EQ(::syscall(SYS_ioprio_get, 1, 0) >> 13, 3);
}

LIVE_TEST(Limits, KeepsNamesAndTimerSlack) {
  std::atomic<int> stage{0};
  char name[17] = {};
  int slack = 0;
  std::thread thread([&] {
    ::prctl(PR_SET_NAME, "worker \xc3\xa4/(1)");
    ::prctl(PR_SET_TIMERSLACK, 123456UL);
    stage = 1;
    while (stage == 1) {
      ::sched_yield();
    }
    ::prctl(PR_GET_NAME, name);
    slack = ::prctl(PR_GET_TIMERSLACK);
  });
  while (stage == 0) {
    ::sched_yield();
  }
  ASSERT_EQ(::prctl(PR_SET_NAME, "fifteen letters"), 0);
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_STREQ(name, "worker \xc3\xa4/(1)");
  EXPECT_EQ(slack, 123456);
  ASSERT_EQ(::prctl(PR_GET_NAME, name), 0);
  EXPECT_STREQ(name, "fifteen letters");
}

LIVE_TEST(Limits, KeepsTheOomScore) {
  const int fd = ::open("/proc/self/oom_score_adj", O_RDWR);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::write(fd, "321", 3), 3);
  ::close(fd);
  checkpoint_here();
  char text[16] = {};
  const int again = ::open("/proc/self/oom_score_adj", O_RDONLY);
  ASSERT_GT(::read(again, text, sizeof text - 1), 0);
  ::close(again);
  EXPECT_STREQ(text, "321\n");
}

LIVE_TEST(Limits, KeepsAttributesOfTheProcess) {
  constexpr int kSetMdwe = 65, kGetMdwe = 66, kRegister = MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  ASSERT_EQ(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
  ASSERT_NE(::personality(ADDR_NO_RANDOMIZE | UNAME26), -1);
  ASSERT_EQ(::syscall(SYS_membarrier, kRegister, 0, 0), 0);
  const bool has_mdwe = ::prctl(kSetMdwe, 1, 0, 0, 0) == 0;
  checkpoint_here();
  int reaper = 0;
  ASSERT_EQ(::prctl(PR_GET_CHILD_SUBREAPER, &reaper), 0);
  EXPECT_EQ(reaper, 1);
  EXPECT_EQ(::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), 1);
  EXPECT_EQ(::personality(0xffffffff), ADDR_NO_RANDOMIZE | UNAME26);
  EXPECT_EQ(::syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0), 0) << "still registered";
  if (has_mdwe) {
    EXPECT_EQ(::prctl(kGetMdwe, 0, 0, 0, 0), 1);
  }
}

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

LIVE_TEST(Limits, KeepsWhichMemoryACoreFileGets) {
  std::ofstream("/proc/self/coredump_filter") << "0x7f";
  ASSERT_EQ(text_of("/proc/self/coredump_filter"), "0000007f\n");
  checkpoint_here();
  EXPECT_EQ(text_of("/proc/self/coredump_filter"), "0000007f\n");
}

LIVE_TEST(Limits, KeepsTheNiceValueOfTheSession) {
  std::ofstream("/proc/self/autogroup") << "4";
  const std::string before = text_of("/proc/self/autogroup");
  if (before.find(" nice 4") == std::string::npos) {
    GTEST_SKIP() << "this kernel does not group sessions";
  }
  checkpoint_here();
  EXPECT_NE(text_of("/proc/self/autogroup").find(" nice 4"), std::string::npos);
}

LIVE_TEST(Limits, KeepsADeadline) {
  struct {
    std::uint32_t size, policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime, deadline, period;
  } attr{48, SCHED_DEADLINE, 0, 0, 0, 20'000'000, 400'000'000, 500'000'000}, got{};
  if (::syscall(SYS_sched_setattr, 0, &attr, 0) != 0) {
    GTEST_SKIP() << "no deadline scheduling here: " << std::strerror(errno);
  }
  checkpoint_here();
  ASSERT_EQ(::syscall(SYS_sched_getattr, 0, &got, sizeof got, 0), 0);
  EXPECT_EQ(got.policy, static_cast<std::uint32_t>(SCHED_DEADLINE));
  EXPECT_EQ(got.runtime, attr.runtime);
  EXPECT_EQ(got.deadline, attr.deadline);
  EXPECT_EQ(got.period, attr.period);
}

// Attributes of one thread, which the others do not have.
template <class Set, class Get>
void of_one_thread(Set set, Get get) {
  std::atomic<int> stage{0};
  long before = 0, after = 0;
  bool done = false;
  std::thread thread([&] {
    done = set();
    before = get();
    stage = 1;
    while (stage == 1) {
      ::sched_yield();
    }
    after = get();
  });
  while (stage == 0) {
    ::sched_yield();
  }
  const long mine = get();
  checkpoint_here();
  stage = 2;
  thread.join();
  if (!done) {
    GTEST_SKIP() << "this kernel or processor has no such attribute";
  }
  EXPECT_EQ(after, before);
  EXPECT_EQ(get(), mine);
  EXPECT_NE(before, mine);
}

LIVE_TEST(Limits, KeepsWhoIsKilledForBrokenMemory) {
  of_one_thread([] { return ::prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0; },
                [] { return ::prctl(PR_MCE_KILL_GET, 0, 0, 0, 0); });
}

LIVE_TEST(Limits, KeepsSpeculationControls) {
  of_one_thread([] { return ::prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0) == 0; },
                [] { return ::prctl(PR_GET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, 0, 0, 0); });
}

LIVE_TEST(Limits, KeepsADisabledTimeStampCounter) {
  of_one_thread([] { return ::prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0; },
                [] {
                  int mode = 0;
                  ::prctl(PR_GET_TSC, &mode);
                  return mode;
                });
}

volatile char dispatch_selector = SYSCALL_DISPATCH_FILTER_ALLOW;
volatile int dispatched = 0;

LIVE_TEST(Limits, KeepsSyscallUserDispatch) {
  // The handler's own return has to pass, and every call of this program is one of the range's outside.
  struct sigaction action {};
  action.sa_sigaction = [](int, siginfo_t* info, void*) {
    dispatch_selector = SYSCALL_DISPATCH_FILTER_ALLOW;
    dispatched = info->si_syscall;
  };
  action.sa_flags = SA_SIGINFO;
  ASSERT_EQ(::sigaction(SIGSYS, &action, nullptr), 0);
  if (::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0UL, 0UL, &dispatch_selector) != 0) {
    GTEST_SKIP() << "this kernel cannot dispatch system calls: " << std::strerror(errno);
  }
  checkpoint_here();
  dispatch_selector = SYSCALL_DISPATCH_FILTER_BLOCK;
  ::syscall(SYS_getppid);
  EXPECT_EQ(dispatched, SYS_getppid);
  EXPECT_EQ(::prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_OFF, 0, 0, 0), 0);
}

LIVE_TEST(Limits, KeepsRegistrationsForMembarrier) {
  ASSERT_EQ(::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0), 0);
  ASSERT_EQ(::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0), 0);
  constexpr int kGetRegistrations = 1 << 9;
  const long before = ::syscall(SYS_membarrier, kGetRegistrations, 0, 0);
  checkpoint_here();
  EXPECT_EQ(::syscall(SYS_membarrier, kGetRegistrations, 0, 0), before);
  EXPECT_EQ(::syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0), 0);
}

LIVE_TEST(Limits, KeepsMemoryMergingAndPartlyDisabledHugePages) {
  constexpr int kSetMerge = 67, kGetMerge = 68;
  const bool merges = ::prctl(kSetMerge, 1, 0, 0, 0) == 0;
  constexpr unsigned long kExceptAdvised = 2;
  const bool partly = ::prctl(PR_SET_THP_DISABLE, 1, kExceptAdvised, 0, 0) == 0;
  if (!merges && !partly) {
    GTEST_SKIP() << "this kernel has neither";
  }
  const int before = ::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
  checkpoint_here();
  EXPECT_EQ(::prctl(kGetMerge, 0, 0, 0, 0) > 0, merges);
  EXPECT_EQ(::prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0), before);
}

}  // namespace
}  // namespace ferry::live
