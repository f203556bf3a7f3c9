#include "programs/criu/option_value.h"

#include <gtest/gtest.h>

namespace ferry::criu {
namespace {

TEST(CgroupProperties, AreTheNamesInTheListsOfTheDescription) {
  engine::CommonOptions options;
  const auto added =
      add_cgroup_properties(options,
                            "\"cpu\":\n  - \"strategy\": \"replace\"\n  - \"properties\": [\"cpu.shares\", "
                            "\"cpu.stat\"]\n\"pids\":\n  - \"properties\": [\"pids.current\"]\n");
  ASSERT_TRUE(added.has_value()) << added.error().message();
  EXPECT_EQ(options.cgroup_properties, (std::vector<std::string>{"cpu.shares", "cpu.stat", "pids.current"}));
}

TEST(CgroupProperties, AreRefusedWithoutAListOrAsPaths) {
  engine::CommonOptions options;
  EXPECT_FALSE(add_cgroup_properties(options, "cpu.shares").has_value());
  EXPECT_FALSE(add_cgroup_properties(options, "\"properties\": [\"../../etc/passwd\"]").has_value());
}

TEST(Words, AreSeparatedByCommas) {
  std::vector<std::string> words{"first"};
  ASSERT_TRUE(add_words(words, "a,b").has_value());
  EXPECT_EQ(words, (std::vector<std::string>{"first", "a", "b"}));
}

}  // namespace
}  // namespace ferry::criu
