#include "sys/example.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <chrono>
#include <optional>

#include "sys/file.h"

namespace ferry::sys {
namespace {

bool ends(HostPid pid) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (std::chrono::steady_clock::now() < deadline) {
    // Whoever reaps orphans may be slow: a zombie has ended.
    const auto stat = read_file(fmt::format("/proc/{}/stat", pid));
    if (!stat.has_value() || stat->find(") Z ") != std::string::npos) {
      return true;
    }
    ::usleep(1000);
  }
  return false;
}

TEST(ExampleProcess, IsWhatItBecameUntilItsObjectEnds) {
  std::optional<HostPid> pid, child;
  {
    const auto example =
        Example::start([] { return ::prctl(PR_SET_NAME, "an-example") == 0 && Example::bear_child(); }, "an example");
    ASSERT_TRUE(example.has_value()) << example.error().message();
    const auto born = example->child();
    ASSERT_TRUE(born.has_value()) << born.error().message();
    pid = example->pid();
    child = *born;
    EXPECT_EQ(read_file(fmt::format("/proc/{}/comm", *pid)).value_or(""), "an-example\n");
    EXPECT_EQ(read_file(fmt::format("/proc/{}/comm", *child)).value_or(""), "an-example\n");
  }
  EXPECT_EQ(::kill(pid->value, 0), -1);
  EXPECT_TRUE(ends(*child));
}

TEST(ExampleProcess, SaysWhenItCouldNotBecomeIt) {
  const auto example = Example::start([] { return false; }, "a square circle");
  ASSERT_FALSE(example.has_value());
  EXPECT_EQ(example.error().what, "a square circle could not be made");
}

}  // namespace
}  // namespace ferry::sys
