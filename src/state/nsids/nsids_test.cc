#include "state/nsids/nsids.h"

#include <gtest/gtest.h>
#include <sched.h>

#include "image/proto/inventory.pb.h"

namespace ferry::state {
namespace {

image::Set set_with(std::uint32_t pid_ns, std::uint32_t net_ns, std::uint32_t cgroup_ns) {
  image::Set set;
  pb::InventoryEntry inventory;
  inventory.mutable_root_ids()->set_pid_ns_id(1);
  inventory.mutable_root_ids()->set_net_ns_id(2);
  inventory.mutable_root_ids()->set_cgroup_ns_id(8);
  set.add({image::Type::inventory, 0}, std::move(inventory));
  pb::PstreeEntry root;
  root.set_pid(17);
  set.add({image::Type::pstree, 0}, std::move(root));
  pb::TaskKobjIdsEntry ids;
  ids.set_pid_ns_id(pid_ns);
  ids.set_net_ns_id(net_ns);
  ids.set_cgroup_ns_id(cgroup_ns);
  set.add({image::Type::ids, 17}, std::move(ids));
  return set;
}

TEST(NamespaceIds, IsNewWhereTheRootTaskDiffersFromTheDumper) {
  const auto ids = NamespaceIds::of(set_with(9, 2, 10));
  ASSERT_TRUE(ids.has_value());
  EXPECT_TRUE(ids->is_new(NsKind::pid));
  EXPECT_FALSE(ids->is_new(NsKind::net));
  EXPECT_TRUE(ids->is_new(NsKind::cgroup));
  EXPECT_FALSE(ids->is_new(NsKind::time)) << "the set says nothing of it";
  EXPECT_EQ(ids->clone_flags(), static_cast<std::uint64_t>(CLONE_NEWPID)) << "cgroup is not made by clone";
}

TEST(NamespaceIds, RefusesASetWithoutTree) { EXPECT_FALSE(NamespaceIds::of(image::Set()).has_value()); }

TEST(ExternalKey, FindsTheKeyOfAnInode) {
  CommonOptions options;
  options.external = {"mnt[/a]:x", "net[42]:host:net"};
  EXPECT_EQ(external_key(options, "net", "42"), "host:net");
  EXPECT_EQ(external_key(options, "mnt", "/a"), "x");
  EXPECT_EQ(external_key(options, "net", "4"), std::nullopt);
}

}  // namespace
}  // namespace ferry::state
