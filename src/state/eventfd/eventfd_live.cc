#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(Eventfd, KeepsCounterAbove32Bits) {
  const int fd = ::eventfd(0, EFD_NONBLOCK);
  const std::uint64_t put = (1ULL << 32) + 5;
  ASSERT_EQ(::write(fd, &put, sizeof put), static_cast<ssize_t>(sizeof put));
  checkpoint_here();
  std::uint64_t got = 0;
  EXPECT_EQ(::read(fd, &got, sizeof got), static_cast<ssize_t>(sizeof got));
  EXPECT_EQ(got, put);
  EXPECT_EQ(::read(fd, &got, sizeof got), -1);
  EXPECT_EQ(errno, EAGAIN) << "O_NONBLOCK is kept";
}

LIVE_TEST(Eventfd, StaysASemaphore) {
  const int fd = ::eventfd(3, EFD_SEMAPHORE);
  checkpoint_here();
  std::uint64_t got = 0;
  ASSERT_EQ(::read(fd, &got, sizeof got), static_cast<ssize_t>(sizeof got));
  EXPECT_EQ(got, 1U);
}

}  // namespace
}  // namespace ferry::live
