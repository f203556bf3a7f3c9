#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

constexpr std::size_t kPage = 4096, kWords = kPage / sizeof(std::uint64_t);

std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  return x ^ (x >> 31);
}

// Memory whose every page holds what its number and its generation say.
class Pattern {
 public:
  Pattern(void* at, std::size_t pages, std::uint64_t seed)
      : words_(static_cast<std::uint64_t*>(at)), generation_(pages, 0), seed_(seed) {}
  void write(std::size_t page) {
    ++generation_[page];
    for (std::size_t i = 0; i < kWords; ++i) {
      words_[page * kWords + i] = expected(page, i);
    }
  }
  void write_all() {
    for (std::size_t page = 0; page < generation_.size(); ++page) {
      write(page);
    }
  }
  void forget(std::size_t page) { generation_[page] = 0; }
  void move_to(void* at) { words_ = static_cast<std::uint64_t*>(at); }
  // The number of pages that are wrong.
  [[nodiscard]] std::size_t wrong() const {
    std::size_t bad = 0;
    for (std::size_t page = 0; page < generation_.size(); ++page) {
      for (std::size_t i = 0; i < kWords; ++i) {
        if (words_[page * kWords + i] != expected(page, i)) {
          ++bad;
          break;
        }
      }
    }
    return bad;
  }

 private:
  [[nodiscard]] std::uint64_t expected(std::size_t page, std::size_t word) const {
    return generation_[page] == 0 ? 0 : mix(seed_ + page * 1000003 + generation_[page] * 7919 + word);
  }
  std::uint64_t* words_;
  std::vector<std::uint64_t> generation_;
  std::uint64_t seed_;
};

void* map(std::size_t pages, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1) {
  return ::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, flags, fd, 0);
}

}  // namespace

LIVE_TEST(PreDump, KeepsWhatWasWrittenBetween) {
  constexpr std::size_t kPages = 512;
  Pattern memory(map(kPages), kPages, 1);
  memory.write_all();
  pre_dump_here();
  memory.write(3);
  memory.write(200);
  pre_dump_here();
  memory.write(200);
  memory.write(511);
  pre_dump_here();
  memory.write(3);
  checkpoint_here();
  EXPECT_EQ(memory.wrong(), 0U);
  memory.write_all();
  EXPECT_EQ(memory.wrong(), 0U);
}

LIVE_TEST(PreDump, FollowsMappingsThatComeAndGo) {
  constexpr std::size_t kPages = 64;
  void* const first = map(kPages);
  void* const second = map(kPages);
  Pattern moved(first, kPages, 1);
  Pattern given_up(second, kPages, 2);
  moved.write_all();
  given_up.write_all();
  pre_dump_here();

  void* const target = map(kPages);
  ASSERT_EQ(::mremap(first, kPages * kPage, kPages * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, target), target);
  moved.move_to(target);
  ::madvise(second, 16 * kPage, MADV_DONTNEED);
  for (std::size_t page = 0; page < 16; ++page) {
    given_up.forget(page);
  }
  // In the place of the old one, with other content and with none.
  ASSERT_EQ(::mmap(first, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            first);
  Pattern fresh(first, kPages, 3);
  fresh.write(5);
  pre_dump_here();

  moved.write(7);
  fresh.write(6);
  ::madvise(static_cast<char*>(second) + 32 * kPage, kPage, MADV_DONTNEED);
  given_up.forget(32);
  std::vector<char> heap(1U << 16, 'h');
  checkpoint_here();
  EXPECT_EQ(moved.wrong(), 0U);
  EXPECT_EQ(given_up.wrong(), 0U);
  EXPECT_EQ(fresh.wrong(), 0U);
  EXPECT_EQ(std::vector<char>(1U << 16, 'h'), heap);
}

LIVE_TEST(PreDump, KnowsFilesFromMemory) {
  constexpr std::size_t kPages = 16;
  char path[] = "/tmp/pre-dump-XXXXXX";
  const int fd = ::mkstemp(path);
  ::unlink(path);
  const int memory_file = ::memfd_create("pre-dump", 0);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::ftruncate(fd, kPages * kPage), 0);
  ASSERT_EQ(::ftruncate(memory_file, kPages * kPage), 0);
  auto* const copy = static_cast<char*>(map(kPages, MAP_PRIVATE, fd));
  Pattern own(copy, kPages, 1);
  Pattern shared(map(kPages, MAP_SHARED, memory_file), kPages, 2);
  own.write_all();
  shared.write_all();
  pre_dump_here();
  own.write(2);
  shared.write(3);
  // Back to what the file holds.
  ::madvise(copy + 4 * kPage, 2 * kPage, MADV_DONTNEED);
  own.forget(4);
  own.forget(5);
  pre_dump_here();
  const char text[] = "through the file";
  ASSERT_EQ(::pwrite(memory_file, text, sizeof text, 9 * kPage), static_cast<ssize_t>(sizeof text));
  checkpoint_here();
  EXPECT_EQ(own.wrong(), 0U);
  char read_back[sizeof text] = {};
  EXPECT_EQ(::pread(memory_file, read_back, sizeof text, 9 * kPage), static_cast<ssize_t>(sizeof text));
  EXPECT_STREQ(read_back, text);
  EXPECT_EQ(shared.wrong(), 1U);
}

LIVE_TEST(PreDump, SavesChildrenThatCameLater) {
  constexpr std::size_t kPages = 64;
  Pattern memory(map(kPages), kPages, 1);
  auto* const verdict = static_cast<std::atomic<int>*>(map(1, MAP_SHARED | MAP_ANONYMOUS));
  memory.write_all();
  pre_dump_here();
  const pid_t child = ::fork();
  if (child == 0) {
    memory.write(1);
    for (*verdict = 1; *verdict != 2;) {
      ::sched_yield();
    }
    ::_exit(static_cast<int>(memory.wrong()));
  }
  memory.write(2);
  while (*verdict != 1) {
    ::sched_yield();
  }
  pre_dump_here();
  memory.write(1);
  checkpoint_here();
  EXPECT_EQ(memory.wrong(), 0U);
  *verdict = 2;
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

LIVE_TEST(PreDump, LosesNoWriteOfABusyThread) {
  constexpr std::size_t kPages = 1024;
  Pattern memory(map(kPages), kPages, 1);
  memory.write_all();
  std::atomic<bool> stop{false};
  std::atomic<bool> writes{false};
  std::thread writer([&] {
    for (std::uint64_t n = 1; !stop; ++n) {
      memory.write(mix(n) % kPages);
      writes = true;
    }
  });
  while (!writes) {
    ::sched_yield();  // until then pthread_create(3) has its signals blocked
  }
  pre_dump_here();
  pre_dump_here();
  pre_dump_here();
  checkpoint_here();
  stop = true;
  writer.join();
  EXPECT_EQ(memory.wrong(), 0U);
}

}  // namespace ferry::live
