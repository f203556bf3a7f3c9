#include "state/memory/page_set.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace ferry::state::memory {
namespace {

constexpr std::uint64_t kPage = 4096;

TEST(PageSet, IsTheSameAsATableOfPages) {
  constexpr std::size_t kPages = 64;
  std::mt19937 random(7);
  std::uniform_int_distribution<std::size_t> place(0, kPages);
  PageSet set;
  std::vector<bool> table(kPages);
  for (int round = 0; round < 2000; ++round) {
    const std::size_t a = place(random);
    const std::size_t b = place(random);
    const std::size_t start = std::min(a, b);
    const std::size_t end = std::max(a, b);
    const bool add = round % 3 != 0;
    if (add) {
      set.add(start * kPage, end * kPage);
    } else {
      set.remove(start * kPage, end * kPage);
    }
    std::fill(table.begin() + static_cast<std::ptrdiff_t>(start), table.begin() + static_cast<std::ptrdiff_t>(end),
              add);
    std::vector<bool> got(kPages);
    std::uint64_t last_end = 0;
    for (const auto& range : set.ranges()) {
      ASSERT_LT(range.start, range.end);
      ASSERT_TRUE(last_end == 0 || range.start > last_end) << "neighbours are merged";
      last_end = range.end;
      for (std::uint64_t at = range.start; at < range.end; at += kPage) {
        got[at / kPage] = true;
      }
    }
    ASSERT_EQ(got, table) << "round " << round;
    bool all = true;
    for (std::size_t i = start; i < end; ++i) {
      all = all && table[i];
    }
    EXPECT_EQ(set.covers(start * kPage, end * kPage), all);
  }
}

}  // namespace
}  // namespace ferry::state::memory
