#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "live/live.h"

namespace ferry::live {
namespace {

bool restrict_self() {
  landlock_ruleset_attr rules{};
  rules.handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_BLOCK;
  const long ruleset = ::syscall(SYS_landlock_create_ruleset, &rules, sizeof rules.handled_access_fs, 0);
  const bool done = ruleset >= 0 && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                    ::syscall(SYS_landlock_restrict_self, ruleset, 0) == 0;
  return ::close(static_cast<int>(ruleset)) == 0 && done;
}

bool kernel_has_landlock() {
  return ::syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;
}

LIVE_TEST_WITH(Landlock, RefusesAProcess, Options{.refused = "has restricted itself with landlock(7)"}) {
  if (!kernel_has_landlock()) {
    GTEST_SKIP() << "a kernel without Landlock";
  }
  ASSERT_TRUE(restrict_self());
  checkpoint_here();
}

LIVE_TEST_WITH(Landlock, RefusesAThread, Options{.refused = "has restricted itself with landlock(7)"}) {
  if (!kernel_has_landlock()) {
    GTEST_SKIP() << "a kernel without Landlock";
  }
  std::atomic<int> restricted = -1;
  std::atomic<bool> done = false;
  std::thread thread([&] {
    restricted = restrict_self();
    restricted.notify_one();
    done.wait(false);
  });
  restricted.wait(-1);
  checkpoint_here();
  done = true;
  done.notify_one();
  thread.join();
  ASSERT_EQ(restricted, 1);
}

}  // namespace
}  // namespace ferry::live
