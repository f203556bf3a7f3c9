#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace ferry {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) {
    return fail(Kind::invalid, "{} is odd", n);
  }
  return n / 2;
}

Result<int> quarter(int n) {
  FERRY_TRY(const int h, half(n).during("halving {}", n));
  FERRY_CHECK(half(h).during("halving {} again", h));
  return h / 2;
}

TEST(Result, CarriesContextInOrder) {
  EXPECT_EQ(*quarter(8), 2);
  const auto r = quarter(6);
  ASSERT_FALSE(r.has_value());
  EXPECT_EQ(r.error().message(), "halving 3 again: 3 is odd");
  EXPECT_EQ(r.error().kind, Kind::invalid);
  EXPECT_NE(r.error().line, 0);
}

TEST(Result, SysFailSavesErrnoAndMapsIt) {
  errno = ESRCH;
  const Result<void> r = sys_fail("ptrace(SEIZE, 7)");
  EXPECT_EQ(r.error().kind, Kind::gone);
  EXPECT_EQ(r.error().message(), "ptrace(SEIZE, 7): No such process");
}

}  // namespace
}  // namespace ferry
