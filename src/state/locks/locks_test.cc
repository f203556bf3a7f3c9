#include "state/locks/locks.h"

#include <fcntl.h>
#include <gtest/gtest.h>

namespace ferry::state::locks {
namespace {

TEST(FileLocks, ReadsRangesAsLengths) {
  const auto lock = parse_lock("1: POSIX  ADVISORY  WRITE 25439 fe:00:10953018 10 19");
  ASSERT_TRUE(lock.has_value());
  EXPECT_EQ(lock->sort, Sort::posix);
  EXPECT_EQ(lock->type, static_cast<std::uint32_t>(F_WRLCK));
  EXPECT_EQ(lock->start, 10);
  EXPECT_EQ(lock->length, 10);
}

TEST(FileLocks, ReadsToTheEndOfTheFile) {
  const auto lock = parse_lock("1: FLOCK  ADVISORY  READ 25439 fe:00:10953018 0 EOF");
  ASSERT_TRUE(lock.has_value());
  EXPECT_EQ(lock->sort, Sort::flock);
  EXPECT_EQ(lock->length, 0);
}

TEST(FileLocks, SeesALeaseThatIsBeingBroken) {
  const auto active = parse_lock("2: LEASE  ACTIVE    READ 1 fe:00:1 0 EOF");
  const auto breaking = parse_lock("2: LEASE  BREAKING  UNLCK 1 fe:00:1 0 EOF");
  ASSERT_TRUE(active.has_value() && breaking.has_value());
  EXPECT_FALSE(active->breaking);
  EXPECT_TRUE(breaking->breaking);
}

TEST(FileLocks, RefusesWhatIsNoLock) {
  EXPECT_FALSE(parse_lock("").has_value());
  EXPECT_FALSE(parse_lock("1: POSIX ADVISORY WRITE 1 fe:00:1 20 10").has_value());
  EXPECT_FALSE(parse_lock("1: MAGIC ADVISORY WRITE 1 fe:00:1 0 EOF").has_value());
  EXPECT_FALSE(parse_lock("1: POSIX ADVISORY WRITE 1 fe:00:1 0 99999999999999999999").has_value());
}

}  // namespace
}  // namespace ferry::state::locks
