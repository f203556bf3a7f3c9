#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "live/live.h"

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

}  // namespace
}  // namespace ferry::live
