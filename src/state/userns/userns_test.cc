#include "state/userns/userns.h"

#include <gtest/gtest.h>

namespace ferry::state::userns {
namespace {

TEST(UsernsMap, ReadsWhatTheKernelWrites) {
  const auto map = parse_map("         0     100000      65536\n     65536     300000          1\n");
  ASSERT_TRUE(map.has_value());
  ASSERT_EQ(map->size(), 2);
  EXPECT_EQ(format_map(*map), "0 100000 65536\n65536 300000 1\n");
  EXPECT_EQ(inside(*map, 100'000), 0U);
  EXPECT_EQ(inside(*map, 165'535), 65'535U);
  EXPECT_EQ(inside(*map, 300'000), 65'536U);
  EXPECT_EQ(inside(*map, 165'536), std::nullopt);
  EXPECT_EQ(inside(*map, 0), std::nullopt);
}

TEST(UsernsMap, TheWholeRangeIsOneLine) {
  const auto map = parse_map("         0          0 4294967295\n");
  ASSERT_TRUE(map.has_value());
  EXPECT_EQ(inside(*map, 4'294'967'294), 4'294'967'294U);
}

TEST(UsernsMap, RefusesWhatIsNoMap) {
  EXPECT_FALSE(parse_map("0 100000\n").has_value());
  EXPECT_FALSE(parse_map("0 x 1\n").has_value());
}

}  // namespace
}  // namespace ferry::state::userns
