#include "state/proc_file/dead_process.h"

#include <gtest/gtest.h>

namespace ferry::state::proc_file {
namespace {

TEST(ProcPath, HasProcessAndThread) {
  EXPECT_EQ(numbers_in("/proc/42").process, 42U);
  EXPECT_EQ(numbers_in("/proc/42/fd/7").thread, std::nullopt);
  EXPECT_EQ(numbers_in("/proc/42/task/43/stat").process, 42U);
  EXPECT_EQ(numbers_in("/proc/42/task/43/stat").thread, 43U);
  EXPECT_EQ(numbers_in("/mnt/proc2/7/status").process, 7U);
  EXPECT_EQ(numbers_in("/proc/uptime").process, std::nullopt);
  EXPECT_EQ(numbers_in("/proc/99999999999").process, std::nullopt);
  EXPECT_EQ(numbers_in("").process, std::nullopt);
}

TEST(ProcPath, TakesAnotherProcess) {
  EXPECT_EQ(with_pid("/proc/42/task/42/stat", 42, 7), "/proc/7/task/7/stat");
  EXPECT_EQ(with_pid("/proc/42/task/43/stat", 43, 43), "/proc/43/task/43/stat");
  EXPECT_EQ(with_pid("/proc/42/fd/42", 42, 7), "/proc/7/fd/42");
  EXPECT_EQ(with_pid("/proc/421/task", 421, 7), "/proc/7/task");
  EXPECT_EQ(with_pid("/proc/42", 42, 42), "/proc/42");
}

}  // namespace
}  // namespace ferry::state::proc_file
