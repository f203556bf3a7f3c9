#include "state/inotify/inotify.h"

#include <gtest/gtest.h>

namespace ferry::state {
namespace {

TEST(InotifyFdinfo, ReadsWatchesInHexadecimal) {
  const auto info = sys::parse_fdinfo(
      "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t18\n"
      "inotify wd:1f ino:3c51a sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:1ac5030000000000\n");
  ASSERT_TRUE(info.has_value());
  const auto watches = parse_inotify(*info);
  ASSERT_TRUE(watches.has_value());
  ASSERT_EQ(watches->size(), 1U);
  EXPECT_EQ(watches->front().wd, 0x1fU);
  EXPECT_EQ(watches->front().inode, 0x3c51aU);
  EXPECT_EQ(watches->front().dev, 0xfe00000U);
  EXPECT_EQ(watches->front().handle.size(), 8U);
  EXPECT_EQ(watches->front().handle[0], 0x1a);
}

TEST(InotifyFdinfo, RefusesALineWithoutAnInode) {
  EXPECT_FALSE(parse_inotify(*sys::parse_fdinfo("flags:\t02\ninotify wd:1 sdev:1 mask:2\n")).has_value());
}

}  // namespace
}  // namespace ferry::state
