#include "engine/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace ferry::engine {
namespace {

TEST(FeatureCheck, KnowsWhatIsNoFeature) {
  EXPECT_EQ(probe_feature("list").value(), Feature::unknown);
  EXPECT_EQ(probe_feature("").value(), Feature::unknown);
}

TEST(FeatureCheck, PromisesNothingThatFerryDoesNotUse) {
  // runc and Podman decide by these whether to ask for rounds of pre-dump or for lazy pages.
  for (const char* const name : {"pidfd_store"}) {
    EXPECT_EQ(probe_feature(name).value(), Feature::unused) << name;
  }
}

TEST(FeatureCheck, FindsWhatEverySupportedKernelHas) {
  for (const char* const name : {"mnt_id", "uffd-noncoop", "timerfd", "timens", "openat2", "get_rseq_conf"}) {
    const auto feature = probe_feature(name);
    ASSERT_TRUE(feature.has_value()) << feature.error().message();
    EXPECT_EQ(*feature, Feature::available) << name;
  }
}

TEST(FeatureCheck, LeavesNoChildBehind) {
  ASSERT_TRUE(probe_feature("get_rseq_conf").has_value());
  ASSERT_TRUE(probe_feature("seccomp_filters").has_value());
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG | __WALL), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(FeatureCheck, NeedsRoot) {
  const auto result = check_required_features();
  if (::geteuid() == 0) {
    EXPECT_TRUE(result.has_value()) << result.error().message();
  } else {
    EXPECT_EQ(result.error().kind, Kind::denied);
  }
}

}  // namespace
}  // namespace ferry::engine
