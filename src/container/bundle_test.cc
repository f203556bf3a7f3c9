#include "container/bundle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

namespace ferry::container {
namespace {

using testing::ElementsAre;

TEST(Bundle, ReadsRootBindsMasksAndForeignNamespaces) {
  const auto config = parse_bundle_config(R"({"root":{"path":"/r"},"mounts":[
      {"destination":"/proc","type":"proc"},{"destination":"/data","type":"bind","options":["rbind"]},
      {"destination":"/old","type":"none","options":["rbind","ro"]},
      {"destination":"/sys/fs/cgroup","type":"cgroup","options":["ro"]}],
      "linux":{"maskedPaths":["/proc/keys"],"namespaces":[{"type":"pid"},{"type":"ipc","path":"/proc/1/ns/ipc"}]}})");
  ASSERT_TRUE(config.has_value()) << config.error().message();
  EXPECT_EQ(config->root, "/r");
  EXPECT_THAT(config->bind_destinations, ElementsAre("/data", "/old"));
  EXPECT_THAT(config->cgroup_destinations, ElementsAre("/sys/fs/cgroup"));
  EXPECT_THAT(config->masked_paths, ElementsAre("/proc/keys"));
  EXPECT_THAT(config->joined_namespaces, ElementsAre("ipc"));
  EXPECT_FALSE(parse_bundle_config("{}").has_value());
}

TEST(Bundle, ReadsMountinfoWithEscapesAndOptionalFields) {
  const auto mounts = parse_mountinfo(
      "72 48 0:39 / / rw master:2 shared:7 - overlay overlay rw\n"
      "89 72 254:0 /a\\040b /data\\134x rw - ext4 /dev/vda rw\n"
      "broken line\n");
  ASSERT_EQ(mounts.size(), 2U);
  EXPECT_EQ(mounts[0].type, "overlay");
  EXPECT_EQ(mounts[1].path, "/data\\x");
  EXPECT_EQ(mounts[1].root, "/a b");
}

TEST(Bundle, FindsCgroupPathsOfBothVersions) {
  constexpr const char* kFile = "9:name=systemd:/s\n4:cpu,cpuacct:/docker/x\n6:freezer:/docker/a:b\n0::/unified\n";
  EXPECT_EQ(cgroup_path(kFile, "freezer"), "/docker/a:b");
  EXPECT_EQ(cgroup_path(kFile, "cpuacct"), "/docker/x");
  EXPECT_EQ(cgroup_path(kFile, ""), "/unified");
  EXPECT_EQ(cgroup_path(kFile, "memory"), "");
}

TEST(Bundle, DescriptorsAreThree) {
  const std::vector<std::string> three{"/dev/null", "pipe:[1]", "pipe:[2]"};
  EXPECT_EQ(*decode_descriptors(encode_descriptors(three)), three);
  EXPECT_FALSE(decode_descriptors("[]").has_value());
  EXPECT_FALSE(decode_descriptors(R"(["a","b"])").has_value());
}

TEST(Bundle, ProcessesWithoutAShimAreRefusedByName) {
  const auto shim = find_shim(HostPid(::getpid()), "x");
  ASSERT_FALSE(shim.has_value());
  EXPECT_EQ(shim.error().kind, Kind::unsupported);
  EXPECT_THAT(shim.error().message(), testing::HasSubstr("shim"));
}

}  // namespace
}  // namespace ferry::container
