#include "engine/numbers.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace ferry::engine {
namespace {

TEST(Numbers, AreNotLivedUnderByTheDead) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::_exit(0);
  }
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  const Numbers ours;
  EXPECT_FALSE(ours.is_lived_under(NsPid(child)));
  EXPECT_TRUE(ours.is_lived_under(NsPid(::getpid())));
  EXPECT_TRUE(Vacancy().await(ours, NsPid(child)));
  EXPECT_FALSE(Vacancy().await(ours, NsPid(::getpid())));
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_FALSE(ours.is_lived_under(NsPid(child)));
}

}  // namespace
}  // namespace ferry::engine
