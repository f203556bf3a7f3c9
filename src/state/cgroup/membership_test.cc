#include "state/cgroup/membership.h"

#include <gtest/gtest.h>

namespace ferry::state::cgroup {
namespace {

TEST(CgroupMembership, ReadsBothVersionsAndNamedHierarchies) {
  const auto m = parse_membership("9:name=systemd:/\n4:cpu,cpuacct:/docker/a:b\n0::/x (deleted)\n");
  ASSERT_TRUE(m.has_value());
  EXPECT_EQ(*m, (Membership{{"", "/x"}, {"cpu,cpuacct", "/docker/a:b"}, {"name=systemd", "/"}}));
}

TEST(CgroupMembership, RefusesLinesWithoutAPath) {
  for (const char* text : {"9\n", "9:cpu\n", "9:cpu:\n", "9:cpu:x\n", "\n"}) {
    EXPECT_FALSE(parse_membership(text).has_value()) << text;
  }
}

pb::CgroupEntry image(std::initializer_list<std::pair<const char*, const char*>> members, unsigned prefix = 0) {
  pb::CgroupEntry out;
  for (const auto& [name, path] : members) {
    pb::CgMemberEntry& member = *out.add_sets()->add_ctls();
    member.set_name(name);
    member.set_path(path);
    if (prefix != 0) {
      member.set_cgns_prefix(prefix);
    }
  }
  return out;
}

TEST(CgroupRemap, ReplacesTheOldContainersPath) {
  const Remap remap(image({{"memory", "/docker/old"}, {"cpu,cpuacct", "/docker/old"}, {"name=x", "/"}}),
                    {{"memory", "/docker/new"}, {"cpuacct", "/docker/new2"}});
  EXPECT_EQ(remap.path("memory", "/docker/old"), "/docker/new");
  EXPECT_EQ(remap.path("cpu,cpuacct", "/docker/old/sub"), "/docker/new2/sub");
  EXPECT_EQ(remap.path("name=x", "/"), "/");
}

TEST(CgroupRemap, KeepsWhatDiffersBetweenSets) {
  const Remap remap(image({{"", "/a/old/init"}, {"", "/a/old/work"}}), {{"", "/b"}});
  EXPECT_EQ(remap.path("", "/a/old/init"), "/b/init");
  EXPECT_EQ(remap.path("", "/a/old"), "/b");
}

TEST(CgroupRemap, TakesTheNamespaceAsTheOldRoot) {
  const Remap remap(image({{"", "/a/old/init"}}, 6), {{"", "/b"}});
  EXPECT_EQ(remap.path("", "/a/old/init"), "/b/init");
}

TEST(CgroupRemap, ANamedControllerWinsOverTheRest) {
  const Remap remap(image({{"memory", "/old"}, {"pids", "/old"}}), {{"", "/rest"}, {"memory", "/mem"}});
  EXPECT_EQ(remap.path("memory", "/old"), "/mem");
  EXPECT_EQ(remap.path("pids", "/old"), "/rest");
}

TEST(CgroupRemap, TheRestLeavesHierarchiesAloneInWhichTheTreeHadNoGroup) {
  const Remap remap(image({{"", "/old"}, {"name=x", "/"}}), {{"", "/new"}});
  EXPECT_EQ(remap.path("", "/old"), "/new");
  EXPECT_EQ(remap.path("name=x", "/"), "/");
}

}  // namespace
}  // namespace ferry::state::cgroup
