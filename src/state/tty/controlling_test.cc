#include "state/tty/controlling.h"

#include <gtest/gtest.h>
#include <sys/sysmacros.h>

#include "state/tty/pty.h"

namespace ferry::state::tty {
namespace {

TEST(ForegroundGroup, IsTheEighthField) {
  EXPECT_EQ(parse_foreground_group("42 (sh) S 1 42 42 34816 77 4194304 0"), 77);
}

TEST(ForegroundGroup, IsNotMisledByTheName) {
  EXPECT_EQ(parse_foreground_group("42 (a) S 1 2 3 4 5 (b) R 1 42 42 34816 99 0"), 99);
}

TEST(ForegroundGroup, IsNoneWithoutATerminal) {
  EXPECT_EQ(parse_foreground_group("42 (sh) S 1 42 42 0 -1 4194304"), 0);
  EXPECT_EQ(parse_foreground_group("42 (sh) S 1"), 0);
  EXPECT_EQ(parse_foreground_group("nonsense"), 0);
}

TEST(SlaveDevice, NumbersGoOnAcrossMajors) {
  EXPECT_TRUE(is_slave_device(makedev(136, 0)));
  EXPECT_FALSE(is_slave_device(makedev(5, 2)));
  EXPECT_EQ(slave_index(makedev(136, 255)), 255U);
  EXPECT_EQ(slave_index(makedev(137, 1)), 257U);
}

}  // namespace
}  // namespace ferry::state::tty
