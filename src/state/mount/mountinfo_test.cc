#include "state/mount/mountinfo.h"

#include <gtest/gtest.h>
#include <sys/mount.h>

namespace ferry::state::mount {
namespace {

TEST(Mountinfo, ReadsFlagsGroupsAndEscapes) {
  const auto lines = parse_mountinfo(
      "119 144 0:49 / /sys/firmware ro,relatime - tmpfs tmpfs ro\n"
      "156 142 0:47 /a\\040b /dev/shm rw,nosuid,nodev,noexec shared:7 master:9 - tmpfs sh\\134m rw,lazytime,size=65536k\n");
  ASSERT_TRUE(lines.has_value());
  ASSERT_EQ(lines->size(), 2U);
  EXPECT_EQ((*lines)[0].flags, 0x200001U);
  EXPECT_EQ((*lines)[0].superblock_flags, 1U);
  EXPECT_EQ((*lines)[0].options, "");
  EXPECT_EQ((*lines)[1].root, "/a b");
  EXPECT_EQ((*lines)[1].source, "sh\\m");
  EXPECT_EQ((*lines)[1].flags,
            static_cast<std::uint32_t>(MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_STRICTATIME | MS_SHARED | MS_SLAVE));
  EXPECT_EQ((*lines)[1].shared, 7U);
  EXPECT_EQ((*lines)[1].master, 9U);
  EXPECT_EQ((*lines)[1].superblock_flags, static_cast<std::uint32_t>(MS_LAZYTIME));
  EXPECT_EQ((*lines)[1].options, "size=65536k");
}

TEST(Mountinfo, NumbersDevicesAsTheKernelDoes) {
  const auto lines = parse_mountinfo("27 1 254:3 / / rw,relatime - ext4 /dev/vda rw\n");
  ASSERT_TRUE(lines.has_value());
  EXPECT_EQ(lines->front().dev, 254U << 20 | 3U);
}

TEST(Mountinfo, RefusesLinesThatAreCutShort) {
  for (const char* text : {"27\n", "27 1 254 / / rw - ext4 a rw\n", "27 1 254:0 / / rw,relatime\n", "\n",
                           "27 1 254:0 / / rw,relatime -\n", "27 1 254:0 / x rw - ext4 a rw\n"}) {
    EXPECT_FALSE(parse_mountinfo(text).has_value()) << text;
  }
}

TEST(MountPaths, AComponentIsNotAPrefixOfALongerName) {
  EXPECT_TRUE(is_below("/a/b", "/a"));
  EXPECT_TRUE(is_below("/a", "/a"));
  EXPECT_FALSE(is_below("/ab", "/a"));
  EXPECT_TRUE(is_below("/ab", "/"));
  EXPECT_EQ(relative_to("/a/b", "/a"), "b");
  EXPECT_EQ(relative_to("/a", "/"), "a");
  EXPECT_EQ(relative_to("/", "/"), "");
}

TEST(MountOrder, PutsAHiddenMountBeforeTheOneThatHidesIt) {
  // 3 was mounted on /a after 2 had been mounted on /a/b; 4 lies on top of 3.
  const std::vector<Place> places{{4, 3, "/a"}, {3, 1, "/a"}, {2, 1, "/a/b"}, {1, 77, "/"}};
  const auto order = mount_order(places);
  ASSERT_TRUE(order.has_value());
  EXPECT_EQ(*order, (std::vector<std::size_t>{3, 2, 1, 0}));
}

TEST(MountOrder, RefusesTwoRootsAndCircles) {
  EXPECT_FALSE(mount_order({{1, 9, "/"}, {2, 8, "/"}}).has_value());
  EXPECT_FALSE(mount_order({{1, 9, "/"}, {2, 3, "/a"}, {3, 2, "/a"}}).has_value());
}

}  // namespace
}  // namespace ferry::state::mount
