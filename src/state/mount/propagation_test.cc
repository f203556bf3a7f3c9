#include "state/mount/propagation.h"

#include <gtest/gtest.h>

namespace ferry::state::mount {
namespace {

pb::MntEntry entry(const char* root, std::uint32_t shared, std::uint32_t master) {
  pb::MntEntry out;
  out.set_root(root);
  out.set_root_dev(5);
  out.set_shared_id(shared);
  out.set_master_id(master);
  return out;
}

TEST(OuterMaster, IsBroughtByAMountFromOutsideThatShowsEnough) {
  const pb::MntEntry root = entry("/fs", 0, 9), part = entry("/fs/a", 0, 9), other = entry("/", 0, 9);
  const std::vector<Placed> all{{&root, -1, true, false}, {&part, -1, false, false}, {&other, -1, false, false}};
  EXPECT_FALSE(needs_donor(all[0], all)) << "it comes from outside itself";
  EXPECT_TRUE(needs_donor(all[1], all));
  EXPECT_EQ(donor_of(all[1], all), &all[0]);
  EXPECT_EQ(donor_of(all[2], all), nullptr) << "it shows more than the mount from outside";
}

TEST(OuterMaster, IsNoneIfTheMasterIsInTheTree) {
  const pb::MntEntry master = entry("/", 9, 0), slave = entry("/", 0, 9);
  const std::vector<Placed> all{{&master, -1, false, false}, {&slave, -1, false, false}};
  EXPECT_FALSE(needs_donor(all[1], all));
}

}  // namespace
}  // namespace ferry::state::mount
