#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "live/live.h"

namespace ferry::live {
namespace {

constexpr std::size_t kPage = 4096;
constexpr int kInstallGuard = 102, kRemoveGuard = 103;  // MADV_GUARD_*, Linux 6.13

bool can_read(char* at) {
  char byte = 0;
  const iovec local{&byte, 1};
  const iovec remote{at, 1};
  return ::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0) == 1;
}

}  // namespace

LIVE_TEST(GuardPages, StayWhereTheyWere) {
  auto* const at =
      static_cast<char*>(::mmap(nullptr, 16 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(at, 'x', 16 * kPage);
  if (::madvise(at, kPage, kInstallGuard) != 0 && errno == EINVAL) {
    GTEST_SKIP() << "MADV_GUARD_INSTALL (Linux 6.13) is missing";
  }
  ASSERT_EQ(::madvise(at + 7 * kPage, 2 * kPage, kInstallGuard), 0);
  checkpoint_here();
  for (std::size_t page = 0; page < 16; ++page) {
    const bool guarded = page == 0 || page == 7 || page == 8;
    EXPECT_NE(can_read(at + page * kPage), guarded) << "page " << page;
    if (!guarded) {
      EXPECT_EQ(at[page * kPage + 5], 'x') << "page " << page;
    }
  }
  ASSERT_EQ(::madvise(at + 7 * kPage, kPage, kRemoveGuard), 0);
  EXPECT_EQ(at[7 * kPage], 0);
}

LIVE_TEST(GuardPages, GoThroughAPreDump) {
  auto* const at =
      static_cast<char*>(::mmap(nullptr, 8 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::memset(at, 'x', 8 * kPage);
  if (::madvise(at, kPage, kInstallGuard) != 0 && errno == EINVAL) {
    GTEST_SKIP() << "MADV_GUARD_INSTALL (Linux 6.13) is missing";
  }
  pre_dump_here();
  ASSERT_EQ(::madvise(at, kPage, kRemoveGuard), 0);
  ASSERT_EQ(::madvise(at + kPage, kPage, kInstallGuard), 0);
  checkpoint_here();
  EXPECT_TRUE(can_read(at));
  EXPECT_FALSE(can_read(at + kPage));
  EXPECT_EQ(at[2 * kPage], 'x');
}

}  // namespace ferry::live
