#include "state/cpu/cpuinfo.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "image/proto/cpuinfo.pb.h"

namespace ferry::state::cpu {
namespace {

using testing::HasSubstr;

constexpr std::uint32_t kFpu = 1;
constexpr std::uint32_t kCpu = 2;
constexpr std::uint32_t kInstructions = 4;

pb::CpuinfoX86Entry this_host() {
  pb::CpuinfoX86Entry entry;
  EXPECT_TRUE(read_cpuinfo(entry).has_value());
  return entry;
}

TEST(Cpuinfo, AHostCanRunWhatItRanItself) {
  const auto host = this_host();
  EXPECT_TRUE(compare_cpuinfo(host, host, 0xffffffff).has_value());
  EXPECT_EQ(host.capability_size(), 19);
  // SSE2 belongs to x86-64 itself.
  EXPECT_NE(host.capability(0) & (1U << 26), 0U);
}

TEST(Cpuinfo, NamesTheInstructionsThatAreMissing) {
  auto host = this_host();
  host.set_capability(9, host.capability(9) & ~(1U << 5));
  auto image = host;
  image.set_capability(9, image.capability(9) | 1U << 5);
  const auto result = compare_cpuinfo(image, host, kInstructions);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().kind, Kind::unsupported);
  EXPECT_THAT(result.error().message(), testing::EndsWith(": avx2"));
  EXPECT_TRUE(compare_cpuinfo(image, host, kFpu).has_value());
  // More than the image asks for is no harm.
  EXPECT_TRUE(compare_cpuinfo(host, image, kInstructions).has_value());
}

TEST(Cpuinfo, ComparesModelAndStateOnlyWhenAsked) {
  const auto host = this_host();
  auto other_model = host;
  other_model.set_model(host.model() + 1);
  EXPECT_THAT(compare_cpuinfo(other_model, host, kCpu).error().message(), HasSubstr("another processor"));
  EXPECT_TRUE(compare_cpuinfo(other_model, host, kFpu | kInstructions).has_value());
  auto more_state = host;
  more_state.set_xfeatures_mask(host.xfeatures_mask() | 1ULL << 60);
  EXPECT_THAT(compare_cpuinfo(more_state, host, kFpu).error().message(), HasSubstr("0x1000000000000000"));
  EXPECT_TRUE(compare_cpuinfo(more_state, host, kInstructions).has_value());
}

TEST(Cpuinfo, DoesNotTrustTheNumberOfWords) {
  const auto host = this_host();
  auto image = host;
  image.add_capability(0);
  EXPECT_EQ(compare_cpuinfo(image, host, kInstructions).error().kind, Kind::corrupt);
  image.clear_capability();
  EXPECT_EQ(compare_cpuinfo(image, host, kInstructions).error().kind, Kind::corrupt);
}

}  // namespace
}  // namespace ferry::state::cpu
