#include "lazy/missing.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace ferry::lazy {
namespace {

constexpr std::uint64_t kPage = 4096;

TEST(Missing, MergesNeighboursAndCutsParts) {
  Missing missing;
  missing.add(0x1000, 0x3000);
  missing.add(0x3000, 0x5000);
  EXPECT_EQ(missing.next(0), (Missing::Part{0x1000, 0x5000, 0x1000}));
  EXPECT_EQ(missing.next(0x2000), (Missing::Part{0x2000, 0x5000, 0x2000}));
  missing.remove(0x2000, 0x3000);
  EXPECT_EQ(missing.next(0x1800), (Missing::Part{0x1800, 0x2000, 0x1800}));
  EXPECT_EQ(missing.next(0x2000), (Missing::Part{0x3000, 0x5000, 0x3000}));
  EXPECT_EQ(missing.bytes(), 0x3000U);
  EXPECT_EQ(missing.origin_of(0x2000), std::nullopt);
  EXPECT_TRUE(missing.of_origin(0x4000, 0x4000).empty());
  missing.remove(0x4000, 0x4000);
  EXPECT_EQ(missing.bytes(), 0x3000U);
  missing.remove(0, 0x10000);
  EXPECT_TRUE(missing.empty());
  EXPECT_EQ(missing.bytes(), 0U);
}

TEST(Missing, FindsMovedPagesByTheirOrigin) {
  Missing missing;
  missing.add(0x10000, 0x20000);
  missing.move(0x14000, 0x80000, 0x4000);
  EXPECT_EQ(missing.origin_of(0x81000), 0x15000U);
  EXPECT_EQ(missing.origin_of(0x15000), std::nullopt);
  const auto parts = missing.of_origin(0x13000, 0x16000);
  ASSERT_EQ(parts.size(), 2U);
  EXPECT_EQ(parts[0], (Missing::Part{0x13000, 0x14000, 0x13000}));
  EXPECT_EQ(parts[1], (Missing::Part{0x80000, 0x82000, 0x14000}));
  missing.move(0x80000, 0x14000, 0x4000);  // and back
  EXPECT_EQ(missing.bytes(), 0x10000U);
  EXPECT_EQ(missing.origin_of(0x15000), 0x15000U);
}

// Against a table of single pages.
TEST(Missing, IsWhatATableOfPagesIs) {
  std::minstd_rand random(1);
  for (int round = 0; round < 200; ++round) {
    Missing missing;
    std::map<std::uint64_t, std::uint64_t> table;  // page, origin
    missing.add(100 * kPage, 300 * kPage);
    for (std::uint64_t p = 100; p < 300; ++p) {
      table[p] = p;
    }
    for (int step = 0; step < 40; ++step) {
      const std::uint64_t from = random() % 400;
      const std::uint64_t count = 1 + random() % 30;
      if (random() % 3 == 0) {
        missing.remove(from * kPage, (from + count) * kPage);
        table.erase(table.lower_bound(from), table.lower_bound(from + count));
      } else {
        const std::uint64_t to = (from + 50 + random() % 300) % 500 + (random() % 2) * 1000;
        if (to < from + count && from < to + count) {
          continue;  // mremap(2) refuses ranges that overlap
        }
        missing.move(from * kPage, to * kPage, count * kPage);
        std::map<std::uint64_t, std::uint64_t> moved;
        for (std::uint64_t p = from; p < from + count; ++p) {
          if (const auto found = table.find(p); found != table.end()) {
            moved[p - from + to] = found->second;
            table.erase(found);
          }
        }
        table.erase(table.lower_bound(to), table.lower_bound(to + count));
        table.insert(moved.begin(), moved.end());
      }
    }
    ASSERT_EQ(missing.bytes(), table.size() * kPage);
    for (std::uint64_t p = 0; p < 1600; ++p) {
      const auto known = table.find(p);
      const auto origin = missing.origin_of(p * kPage);
      ASSERT_EQ(origin.has_value(), known != table.end()) << p;
      if (origin.has_value()) {
        ASSERT_EQ(*origin, known->second * kPage);
      }
    }
    std::uint64_t by_origin = 0;
    for (const auto& part : missing.of_origin(150 * kPage, 250 * kPage)) {
      by_origin += (part.end - part.start) / kPage;
      ASSERT_EQ(missing.origin_of(part.start), part.origin);
    }
    std::uint64_t expected = 0;
    for (const auto& [page, origin] : table) {
      expected += origin >= 150 && origin < 250 ? 1 : 0;
    }
    ASSERT_EQ(by_origin, expected);
  }
}

}  // namespace
}  // namespace ferry::lazy
