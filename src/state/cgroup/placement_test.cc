#include "state/cgroup/placement.h"

#include <gtest/gtest.h>

namespace ferry::state::cgroup {
namespace {

TEST(Members, AreSortedWhateverTheOrderOfTheFile) {
  EXPECT_EQ(parse_members("30\n7\n112\n"), (std::vector<pid_t>{7, 30, 112}));
}

TEST(Members, OfAnEmptyGroupAreNone) { EXPECT_TRUE(parse_members("").empty()); }

}  // namespace
}  // namespace ferry::state::cgroup
