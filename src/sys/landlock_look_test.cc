#include "sys/landlock_look.h"

#include <gtest/gtest.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace ferry::sys {
namespace {

class LandlockOfThisKernel : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kernel_has_landlock()) {
      GTEST_SKIP() << "a kernel without Landlock";
    }
    const auto btf = Btf::of_kernel();
    auto opened = btf.has_value() ? LandlockLook::open(*btf) : Result<LandlockLook>(tl::unexpect, btf.error());
    if (!opened.has_value()) {
      GTEST_SKIP() << opened.error().message();
    }
    look = std::move(*opened);
  }
  LandlockLook look;
};

TEST_F(LandlockOfThisKernel, TellsAThreadThatRestrictedItself) {
  const auto before = look.is_restricted(HostPid(::getpid()));
  ASSERT_TRUE(before.has_value()) << before.error().message();
  EXPECT_FALSE(*before);
  std::atomic<int> restricted = -1;
  std::atomic<bool> done = false;
  std::thread thread([&] {
    landlock_ruleset_attr rules{};
    rules.handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_BLOCK;
    const long ruleset = ::syscall(SYS_landlock_create_ruleset, &rules, sizeof rules.handled_access_fs, 0);
    restricted =
        ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::syscall(SYS_landlock_restrict_self, ruleset, 0) == 0;
    ::close(static_cast<int>(ruleset));
    restricted.notify_one();
    done.wait(false);
  });
  restricted.wait(-1);
  const auto mine = look.is_restricted(HostPid(::getpid()));
  const auto any = look.any();
  done = true;
  done.notify_one();
  thread.join();
  ASSERT_EQ(restricted, 1);
  ASSERT_TRUE(mine.has_value()) << mine.error().message();
  EXPECT_TRUE(*mine);
  ASSERT_TRUE(any.has_value()) << any.error().message();
  EXPECT_TRUE(*any);
}

}  // namespace
}  // namespace ferry::sys
