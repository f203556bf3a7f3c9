#include "state/numa/numa.h"

#include <gtest/gtest.h>
#include <linux/mempolicy.h>

namespace ferry::state::numa {
namespace {

pb::FerryMemoryPolicy policy(std::uint32_t mode, std::initializer_list<unsigned> nodes) {
  std::string mask(nodes.size() == 0 ? 0 : 16, '\0');
  for (const unsigned node : nodes) {
    mask[node / 8] = static_cast<char>(mask[node / 8] | 1 << node % 8);
  }
  pb::FerryMemoryPolicy out;
  out.set_mode(mode);
  out.set_nodes(mask);
  return out;
}

TEST(MemoryPolicy, IsPossibleWhereOneOfItsNodesIs) {
  const std::vector<std::byte> nodes{std::byte{0x05}, std::byte{0x01}};  // 0, 2, 8
  EXPECT_TRUE(is_possible(policy(MPOL_BIND, {0}), nodes));
  EXPECT_TRUE(is_possible(policy(MPOL_BIND, {1, 2}), nodes));
  EXPECT_TRUE(is_possible(policy(MPOL_INTERLEAVE, {8, 70}), nodes));
  EXPECT_FALSE(is_possible(policy(MPOL_BIND, {1}), nodes));
  EXPECT_FALSE(is_possible(policy(MPOL_PREFERRED | MPOL_F_STATIC_NODES, {70}), nodes));
}

TEST(MemoryPolicy, WithoutNodesOrWithRelativeOnesIsPossibleEverywhere) {
  const std::vector<std::byte> nodes{std::byte{0x01}};
  EXPECT_TRUE(is_possible(policy(MPOL_LOCAL, {}), nodes));
  EXPECT_TRUE(is_possible(policy(MPOL_BIND | MPOL_F_RELATIVE_NODES, {5}), nodes));
}

}  // namespace
}  // namespace ferry::state::numa
