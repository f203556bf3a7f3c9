#include "state/interrupted/interrupted.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <cerrno>

namespace ferry::state::interrupted {
namespace {

tracee::Registers stopped(std::int64_t rax, std::uint64_t call) {
  tracee::Registers regs{};
  regs.rax = static_cast<std::uint64_t>(rax);
  regs.orig_rax = call;
  regs.rip = 0x401002;
  return regs;
}

TEST(InterruptedCall, IsMadeAgainFromItsStartForCriu) {
  for (const std::int64_t code : {-512, -513, -514}) {
    auto regs = stopped(code, SYS_pause);
    as_criu_would(regs);
    EXPECT_EQ(regs.rax, static_cast<std::uint64_t>(SYS_pause));
    EXPECT_EQ(regs.rip, 0x401000U);
  }
}

TEST(InterruptedCall, WithARestartBlockIsEintrForCriu) {
  auto regs = stopped(-516, SYS_nanosleep);
  as_criu_would(regs);
  EXPECT_EQ(static_cast<std::int64_t>(regs.rax), -EINTR);
  EXPECT_EQ(regs.rip, 0x401002U);
}

TEST(InterruptedCall, ResultsAreLeftAlone) {
  for (const std::int64_t result : {-4, -11, 0, 7}) {
    auto regs = stopped(result, SYS_read);
    as_criu_would(regs);
    EXPECT_EQ(static_cast<std::int64_t>(regs.rax), result);
    EXPECT_EQ(regs.rip, 0x401002U);
  }
  // not in a call at all: the number in rax is the program's own
  auto regs = stopped(-512, ~0ULL);
  as_criu_would(regs);
  EXPECT_EQ(static_cast<std::int64_t>(regs.rax), -512);
}

TEST(InterruptedCall, KnowsWhichReturnEintrBecauseOfAStop) {
  EXPECT_TRUE(returns_eintr_from_stop(SYS_epoll_wait));
  EXPECT_TRUE(returns_eintr_from_stop(SYS_semtimedop));
  EXPECT_TRUE(returns_eintr_from_stop(SYS_recvfrom));
  EXPECT_FALSE(returns_eintr_from_stop(SYS_connect)) << "made again it says EALREADY";
  EXPECT_FALSE(returns_eintr_from_stop(SYS_close)) << "the descriptor is gone";
}

TEST(InterruptedCall, IsFoundBehindRestartSyscall) {
  EXPECT_EQ(call_behind("hrtimer_nanosleep", 0x7ffd12345678), static_cast<std::uint32_t>(SYS_nanosleep));
  EXPECT_EQ(call_behind("hrtimer_nanosleep", 1), static_cast<std::uint32_t>(SYS_clock_nanosleep));
  EXPECT_EQ(call_behind("do_cpu_nanosleep", 0xfffffffa), static_cast<std::uint32_t>(SYS_clock_nanosleep));
  EXPECT_EQ(call_behind("futex_wait_queue", 0x601000), static_cast<std::uint32_t>(SYS_futex));
  EXPECT_EQ(call_behind("poll_schedule_timeout.constprop.0", 0x601000), static_cast<std::uint32_t>(SYS_poll));
  EXPECT_EQ(call_behind("do_syscall_64", 0x7ffd12345678), static_cast<std::uint32_t>(SYS_nanosleep));
  EXPECT_EQ(call_behind("0", 0x601000), 0U);
}

}  // namespace
}  // namespace ferry::state::interrupted
