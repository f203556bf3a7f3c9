#include "state/epoll/epoll.h"

#include <gtest/gtest.h>

namespace ferry::state {
namespace {

sys::FdInfo info_of(std::string_view text) { return sys::parse_fdinfo(text).value(); }

TEST(EpollFdinfo, ReadsEveryWatch) {
  const auto watches =
      parse_epoll(info_of("pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t18\n"
                          "tfd:        5 events:       1d data:  aabbccdd00112233  pos:0 ino:61af sdev:7\n"
                          "tfd:       10 events: 80000019 data: 7  pos:4096 ino:1 sdev:fe00001\n"));
  ASSERT_TRUE(watches.has_value());
  ASSERT_EQ(watches->size(), 2U);
  EXPECT_EQ((*watches)[0].fd, 5);
  EXPECT_EQ((*watches)[0].events, 0x1dU);
  EXPECT_EQ((*watches)[0].data, 0xaabbccdd00112233U);
  EXPECT_EQ((*watches)[0].inode, 0x61afU);
  EXPECT_EQ((*watches)[1].events, 0x80000019U);
  EXPECT_EQ((*watches)[1].pos, 4096U);
  EXPECT_EQ((*watches)[1].dev, 0xfe00001U);
}

TEST(EpollFdinfo, RefusesALineWithoutEvents) {
  EXPECT_FALSE(parse_epoll(info_of("flags:\t02\ntfd: 5 data: 7\n")).has_value());
  EXPECT_FALSE(parse_epoll(info_of("flags:\t02\ntfd: 99999999999 events: 1 data: 7\n")).has_value());
}

}  // namespace
}  // namespace ferry::state
