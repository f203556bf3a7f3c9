#include "migrate/throttle.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "sys/file.h"

namespace ferry::migrate {
namespace {

double limit_of(const CpuQuota& quota) {
  return static_cast<double>(quota.quota_us) / static_cast<double>(quota.period_us);
}

TEST(CpuQuota, LeavesTheShareOfWhatWasUsed) {
  EXPECT_NEAR(limit_of(slower({}, 1.0, 0.7)), 0.7, 0.001);
  EXPECT_NEAR(limit_of(slower({}, 3.0, 0.5)), 1.5, 0.001);
  EXPECT_NEAR(limit_of(slower({}, 0.2, 0.1)), 0.02, 0.001);
}

TEST(CpuQuota, NeverGivesMoreThanTheUserDid) {
  const CpuQuota half{.quota_us = 50'000, .period_us = 100'000};
  EXPECT_NEAR(limit_of(slower(half, 4.0, 0.5)), 0.25, 0.001);
  EXPECT_NEAR(limit_of(slower(half, 0.1, 0.5)), 0.05, 0.001);
}

TEST(CpuQuota, StaysWithinTheKernelsLimits) {
  for (const double share : {1.0, 0.3, 0.02, 0.0001}) {
    for (const double processors : {0.0, 0.01, 1.0, 64.0}) {
      const CpuQuota quota = slower({}, processors, share);
      EXPECT_GE(quota.quota_us, 1000);
      EXPECT_GE(quota.period_us, 1000);
      EXPECT_LE(quota.period_us, 1'000'000);
    }
  }
}

// Directories that look like a cgroup; both versions, of which a machine has one.
class ThrottleFiles : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = "/tmp/ferry-throttle-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  void put(const char* file, const std::string& text) { std::ofstream(directory_ + "/" + file) << text; }
  std::string get(const char* file) {
    std::ifstream in(directory_ + "/" + file);
    std::string line;
    std::getline(in, line);
    return line;
  }
  std::string directory_;
};

TEST_F(ThrottleFiles, SlowsDownAndGivesBackOnVersionOne) {
  put("cpu.cfs_quota_us", "150000");
  put("cpu.cfs_period_us", "100000");
  put("cpuacct.usage", "1000000000");
  {
    auto throttle = Throttle::at(directory_, directory_ + "/cpuacct.usage");
    ASSERT_TRUE(throttle);
    put("cpuacct.usage", "900000000000");  // very much since then: the user's own limit counts
    ASSERT_TRUE(throttle->slow_to(0.5));
    EXPECT_EQ(get("cpu.cfs_period_us"), "20000");
    EXPECT_EQ(get("cpu.cfs_quota_us"), "15000");
    ASSERT_TRUE(throttle->slow_to(0.1));
    EXPECT_EQ(get("cpu.cfs_quota_us"), "3000");
    ASSERT_TRUE(throttle->lift());
    EXPECT_EQ(get("cpu.cfs_quota_us"), "150000");
    EXPECT_EQ(get("cpu.cfs_period_us"), "100000");
  }
  EXPECT_EQ(get("cpu.cfs_quota_us"), "150000");
}

TEST_F(ThrottleFiles, SlowsDownAndGivesBackOnVersionTwo) {
  put("cpu.max", "max 100000");
  put("cpu.stat", "usage_usec 5\nuser_usec 3\n");
  {
    auto throttle = Throttle::at(directory_, directory_ + "/cpu.stat");
    ASSERT_TRUE(throttle);
    put("cpu.stat", "usage_usec 5\nuser_usec 3\n");
    ASSERT_TRUE(throttle->slow_to(0.5));
    EXPECT_EQ(get("cpu.max"), "1000 40000");  // of the least that counts as used
  }
  EXPECT_EQ(get("cpu.max"), "max 100000") << "forgotten by who was destroyed";
}

TEST_F(ThrottleFiles, IsLiftedByAnotherProcessThatWasTold) {
  put("cpu.max", "70000 100000");
  put("cpu.stat", "usage_usec 5\n");
  auto throttle = Throttle::at(directory_, directory_ + "/cpu.stat");
  ASSERT_TRUE(throttle);
  const std::string undo = throttle->undo();
  ASSERT_TRUE(throttle->slow_to(0.1));
  EXPECT_NE(get("cpu.max"), "70000 100000");
  ASSERT_TRUE(Throttle::carry_out(undo));
  EXPECT_EQ(get("cpu.max"), "70000 100000");
  EXPECT_FALSE(Throttle::carry_out("nonsense"));
}

TEST_F(ThrottleFiles, LeavesWhatTheUserHasSetMeanwhile) {
  put("cpu.max", "max 100000");
  put("cpu.stat", "usage_usec 5\n");
  auto throttle = Throttle::at(directory_, directory_ + "/cpu.stat");
  ASSERT_TRUE(throttle);
  ASSERT_TRUE(throttle->slow_to(0.5));
  put("cpu.max", "30000 100000");  // docker update --cpus
  ASSERT_TRUE(throttle->lift());
  EXPECT_EQ(get("cpu.max"), "30000 100000");
}

}  // namespace
}  // namespace ferry::migrate
