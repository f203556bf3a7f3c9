#include "state/memory/room.h"

#include <gtest/gtest.h>

#include <vector>

namespace ferry::state::memory {
namespace {

struct Range {
  std::uint64_t start, end;
};
constexpr std::uint64_t kPage = 4096, kSize = 16 << 20, kLow = 0x100000000;

TEST(Room, IsTheLowestThatTouchesNobody) {
  EXPECT_EQ(lowest_room(std::vector<Range>{}, kSize), kLow);
  EXPECT_EQ(lowest_room(std::vector<Range>{{0x400000, 0x500000}, {kLow + kSize + 2 * kPage, kUserEnd}}, kSize), kLow);
  EXPECT_EQ(lowest_room(std::vector<Range>{{kLow, kLow + kPage}}, kSize), kLow + 2 * kPage);
}

TEST(Room, IsNotWhereItWouldBeTooNarrow) {
  const std::uint64_t next = kLow + kSize + kPage;  // one page short
  EXPECT_EQ(lowest_room(std::vector<Range>{{next, next + kPage}}, kSize), next + 2 * kPage);
  EXPECT_EQ(lowest_room(std::vector<Range>{{kLow - kPage, kUserEnd - kSize}}, kSize), std::nullopt);
  // Above the program's own space, as [vsyscall] is.
  EXPECT_EQ(lowest_room(std::vector<Range>{{kLow, kUserEnd}, {0xffffffffff600000, 0xffffffffff601000}}, kSize),
            std::nullopt);
}

}  // namespace
}  // namespace ferry::state::memory
