#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "live/family.h"
#include "live/live.h"

// Programs that do with their memory what programs do, while most of it has not come yet.  What /proc shows
// is not compared, because meanwhile it would come.
namespace {

constexpr std::size_t kPage = 4096;
using ferry::live::checkpoint_here;
using ferry::live::Family;

struct Block {
  unsigned char* base;
  std::size_t pages;

  static Block make(std::size_t pages, int extra_flags = 0) {
    void* at = ::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | extra_flags, -1, 0);
    EXPECT_NE(at, MAP_FAILED);
    Block out{static_cast<unsigned char*>(at), pages};
    for (std::size_t p = 0; p < pages; ++p) {
      out.write(p, p + 1);
    }
    return out;
  }
  [[nodiscard]] std::uint64_t* word(std::size_t page, std::size_t at) const {
    return reinterpret_cast<std::uint64_t*>(base + page * kPage) + at;
  }
  void write(std::size_t page, std::uint64_t value) const {
    for (const std::size_t at : {0, 100, 511}) {
      *word(page, at) = value * 0x9e3779b97f4a7c15ULL + at;
    }
  }
  [[nodiscard]] bool has(std::size_t page, std::uint64_t value) const {
    bool good = true;
    for (const std::size_t at : {0, 100, 511}) {
      good = good && *word(page, at) == value * 0x9e3779b97f4a7c15ULL + at;
    }
    return good;
  }
  [[nodiscard]] bool is_zero(std::size_t page) const {
    return *word(page, 0) == 0 && *word(page, 100) == 0 && *word(page, 511) == 0;
  }
  // The number of pages in [from, to) that are not as make() left them.
  [[nodiscard]] std::size_t wrong(std::size_t from, std::size_t to) const {
    std::size_t out = 0;
    for (std::size_t p = from; p < to; ++p) {
      out += has(p, p + 1) ? 0 : 1;
    }
    return out;
  }
};

}  // namespace

LIVE_TEST_WITH(Lazy, BringsEveryPage, {.lazy = true, .changes = true}) {
  const Block block = Block::make(16384);
  checkpoint_here();
  EXPECT_TRUE(block.has(9999, 10000));
  EXPECT_EQ(block.wrong(0, block.pages), 0U);
}

LIVE_TEST_WITH(Lazy, GivesZerosToWhatWasNeverWritten, {.lazy = true}) {
  const std::size_t pages = 8192;
  void* at = ::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(at, MAP_FAILED);
  const Block block{static_cast<unsigned char*>(at), pages};
  for (std::size_t p = 0; p < pages; p += 7) {
    block.write(p, p + 1);
  }
  checkpoint_here();
  std::size_t wrong = 0;
  for (std::size_t p = pages; p-- > 0;) {
    wrong += (p % 7 == 0 ? block.has(p, p + 1) : block.is_zero(p)) ? 0 : 1;
  }
  EXPECT_EQ(wrong, 0U);
}

LIVE_TEST_WITH(Lazy, BringsPagesToChildrenThatAreForkedMeanwhile, {.lazy = true, .changes = true}) {
  const Block block = Block::make(32768);
  checkpoint_here();
  std::vector<pid_t> children;
  for (unsigned seed = 0; seed < 8; ++seed) {
    const pid_t child = ::fork();
    if (child == 0) {
      std::minstd_rand random(seed + 1);
      std::size_t wrong = 0;
      for (int i = 0; i < 500; ++i) {
        const std::size_t page = random() % block.pages;
        wrong += block.has(page, page + 1) ? 0 : 1;
      }
      // A grandchild, and what parent and child write is each one's own.
      const pid_t grandchild = ::fork();
      if (grandchild == 0) {
        ::_exit(block.wrong(0, 4096) == 0 ? 0 : 1);
      }
      for (std::size_t p = 4096; p < 4200; ++p) {
        block.write(p, 77);
      }
      wrong += block.wrong(20000, 24000);
      ::_exit(wrong == 0 && Family::end_of(grandchild) == 0 ? 0 : 1);
    }
    ASSERT_GT(child, 0);
    children.push_back(child);
  }
  for (std::size_t p = 5000; p < 5100; ++p) {
    EXPECT_TRUE(block.has(p, p + 1));
    block.write(p, 99);
  }
  for (const pid_t child : children) {
    EXPECT_EQ(Family::end_of(child), 0);
  }
  EXPECT_EQ(block.wrong(0, 5000), 0U);
  EXPECT_EQ(block.wrong(5100, block.pages), 0U);
}

LIVE_TEST_WITH(Lazy, FollowsMemoryThatIsMovedGivenUpAndUnmapped, {.lazy = true, .changes = true}) {
  const Block block = Block::make(32768);
  checkpoint_here();
  // Moved twice, the second time in part.
  void* there = ::mremap(block.base + 20000 * kPage, 4000 * kPage, 4000 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED,
                         ::mmap(nullptr, 4000 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(there, MAP_FAILED);
  const Block moved{static_cast<unsigned char*>(there), 4000};
  void* again = ::mremap(moved.base + 2000 * kPage, 1000 * kPage, 3000 * kPage, MREMAP_MAYMOVE);
  ASSERT_NE(again, MAP_FAILED);
  const Block grown{static_cast<unsigned char*>(again), 3000};
  // Given up: zeros, whatever was there.
  ASSERT_EQ(::madvise(block.base + 10000 * kPage, 3000 * kPage, MADV_DONTNEED), 0);
  // Unmapped, and something new in its place.
  ASSERT_EQ(::munmap(block.base + 15000 * kPage, 2000 * kPage), 0);
  void* fresh = ::mmap(block.base + 15000 * kPage, 2000 * kPage, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  ASSERT_NE(fresh, MAP_FAILED);
  // Cut in many mappings.
  for (std::size_t p = 25000; p < 26000; p += 2) {
    ASSERT_EQ(::mprotect(block.base + p * kPage, kPage, PROT_READ), 0);
  }
  std::size_t wrong = 0;
  for (std::size_t p = 0; p < 2000; ++p) {
    wrong += moved.has(p, 20000 + p + 1) ? 0 : 1;
    wrong += p < 1000 ? (moved.has(3000 + p, 23000 + p + 1) ? 0 : 1) : 0;
    wrong += p < 1000 ? (grown.has(p, 22000 + p + 1) ? 0 : 1) : 0;
    wrong += grown.is_zero(1000 + p) ? 0 : 1;
    wrong += block.is_zero(10000 + p) ? 0 : 1;
    wrong += block.is_zero(15000 + p) ? 0 : 1;
  }
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(block.wrong(0, 10000), 0U);
  EXPECT_EQ(block.wrong(13000, 15000), 0U);
  EXPECT_EQ(block.wrong(17000, 20000), 0U);
  EXPECT_EQ(block.wrong(24000, block.pages), 0U);
}

LIVE_TEST_WITH(Lazy, ServesThreadsThatTouchGiveUpAndForkAtOnce, {.lazy = true, .changes = true}) {
  const Block block = Block::make(16384);
  checkpoint_here();
  std::atomic<std::size_t> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(t + 1);
      for (int i = 0; i < 3000; ++i) {
        const std::size_t page = 4096 + random() % 8192;
        wrong += block.has(page, page + 1) ? 0 : 1;
      }
    });
  }
  threads.emplace_back([&] {
    for (std::size_t p = 0; p < 4096; p += 16) {
      EXPECT_EQ(::madvise(block.base + p * kPage, 8 * kPage, MADV_DONTNEED), 0);
      wrong += block.is_zero(p + 3) ? 0 : 1;
      wrong += block.has(p + 12, p + 13) ? 0 : 1;
    }
  });
  for (int i = 0; i < 10; ++i) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::_exit(block.wrong(12288, 16384) == 0 ? 0 : 1);
    }
    EXPECT_EQ(Family::end_of(child), 0);
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, 0U);
}

LIVE_TEST_WITH(Lazy, LeavesLockedAndSharedMemoryOut, {.lazy = true}) {
  const Block locked = Block::make(64);
  ASSERT_EQ(::mlock(locked.base, locked.pages * kPage), 0);
  void* at = ::mmap(nullptr, 64 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(at, MAP_FAILED);
  const Block shared{static_cast<unsigned char*>(at), 64};
  for (std::size_t p = 0; p < 64; ++p) {
    shared.write(p, p + 1);
  }
  const Block wiped = Block::make(64);
  ASSERT_EQ(::madvise(wiped.base, 64 * kPage, MADV_WIPEONFORK), 0);
  const Block read_only = Block::make(64);
  ASSERT_EQ(::mprotect(read_only.base, 64 * kPage, PROT_READ), 0);
  checkpoint_here();
  std::vector<unsigned char> present(64);
  ASSERT_EQ(::mincore(locked.base, 64 * kPage, present.data()), 0);
  for (const unsigned char page : present) {
    EXPECT_EQ(page & 1, 1);
  }
  const pid_t child = ::fork();
  if (child == 0) {
    bool good = wiped.is_zero(0) && wiped.is_zero(63) && read_only.wrong(0, 64) == 0;
    shared.write(1, 55);
    ::_exit(good ? 0 : 1);
  }
  EXPECT_EQ(Family::end_of(child), 0);
  EXPECT_TRUE(shared.has(1, 55));
  EXPECT_EQ(shared.wrong(2, 64), 0U);
  EXPECT_EQ(wiped.wrong(0, 64) + locked.wrong(0, 64) + read_only.wrong(0, 64), 0U);
}
