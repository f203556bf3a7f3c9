// Pages that processes have in common since fork(2) are still one page after a restore.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

constexpr std::size_t kPage = 4096;

struct Usage {
  long shared_kb = 0, private_kb = 0;
};

// Of the mapping that `at` is in, of this process.
Usage usage_of(const void* at) {
  std::ifstream smaps("/proc/self/smaps");
  const auto address = reinterpret_cast<unsigned long>(at);
  bool here = false;
  Usage out;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long start = 0, end = 0;
    char mode[8];
    if (std::sscanf(line.c_str(), "%lx-%lx %7s", &start, &end, mode) == 3) {
      here = start <= address && address < end;
    } else if (here && line.rfind("Shared_", 0) == 0) {
      out.shared_kb += std::stol(line.substr(line.find(':') + 1));
    } else if (here && line.rfind("Private_", 0) == 0) {
      out.private_kb += std::stol(line.substr(line.find(':') + 1));
    }
  }
  return out;
}

char* memory(std::size_t pages) {
  void* at = ::mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_EQ(::madvise(at, pages * kPage, MADV_NOHUGEPAGE), 0);
  return static_cast<char*>(at);
}

void put(char* at, std::size_t page, char what) { std::memset(at + page * kPage, what, kPage); }
bool has(const char* at, std::size_t page, char what) {
  return at[page * kPage] == what && at[page * kPage + kPage - 1] == what;
}

// Children that wait, and then tell whether what they look at is as it should be.
class Children {
 public:
  Children() {
    EXPECT_EQ(::pipe(go_), 0);
    EXPECT_EQ(::pipe(say_), 0);
  }
  template <class First, class Then>
  void make(First first, Then then) {
    const pid_t child = ::fork();
    if (child == 0) {
      first();
      tell('r');
      wait();
      tell(then() ? 'y' : 'n');
      ::_exit(0);
    }
    pids_.push_back(child);
    EXPECT_EQ(hear(), 'r');
  }
  // Inside a child.
  void wait() const {
    char byte = 0;
    (void)!::read(go_[0], &byte, 1);
  }
  void tell(char byte) const { (void)!::write(say_[1], &byte, 1); }
  char hear() const {
    char byte = 0;
    return ::read(say_[0], &byte, 1) == 1 ? byte : 'e';
  }
  void let_go(int more = 0) {
    for (std::size_t i = 0; i < pids_.size() + static_cast<std::size_t>(more); ++i) {
      EXPECT_EQ(::write(go_[1], "g", 1), 1);
    }
    for (std::size_t i = 0; i < pids_.size() + static_cast<std::size_t>(more); ++i) {
      EXPECT_EQ(hear(), 'y');
    }
    for (const pid_t pid : pids_) {
      EXPECT_EQ(::waitpid(pid, nullptr, 0), pid);
    }
  }

 private:
  int go_[2], say_[2];
  std::vector<pid_t> pids_;
};

LIVE_TEST(Inheritance, WorkersShareWhatNobodyWrote) {
  constexpr std::size_t kPages = 2048;
  char* at = memory(kPages);
  for (std::size_t i = 0; i < kPages; ++i) {
    put(at, i, static_cast<char>('a' + i % 20));
  }
  Children children;
  for (std::size_t n = 0; n < 3; ++n) {
    children.make([&] { put(at, 10 + n, 'W'); },
                  [&] {
                    for (std::size_t i = 0; i < kPages; ++i) {
                      if (!has(at, i, i == 10 + n ? 'W' : static_cast<char>('a' + i % 20))) {
                        return false;
                      }
                    }
                    return usage_of(at).private_kb <= 64;
                  });
  }
  put(at, 100, 'P');
  checkpoint_here();
  const Usage usage = usage_of(at);
  EXPECT_GE(usage.shared_kb, static_cast<long>(kPages - 8) * 4);
  EXPECT_TRUE(has(at, 100, 'P'));
  put(at, 200, 'P');
  EXPECT_TRUE(has(at, 201, static_cast<char>('a' + 201 % 20)));
  children.let_go();
}

LIVE_TEST(Inheritance, EachKeepsItsOwnMappings) {
  char* at = memory(64);
  for (std::size_t i = 0; i < 64; ++i) {
    put(at, i, 'i');
  }
  Children children;
  children.make([&] { ::munmap(at + 8 * kPage, 8 * kPage); },
                [&] {
                  unsigned char there = 0;
                  return has(at, 7, 'i') && has(at, 16, 'i') && ::mincore(at + 8 * kPage, kPage, &there) != 0;
                });
  children.make([&] { ::mprotect(at + 20 * kPage, 4 * kPage, PROT_READ); },
                [&] { return has(at, 20, 'i') && has(at, 63, 'i'); });
  children.make(
      [&] {
        ::madvise(at + 30 * kPage, 4 * kPage, MADV_DONTNEED);
        ::mmap(at + 40 * kPage, 4 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        put(at, 41, 's');
      },
      [&] { return has(at, 30, 0) && has(at, 40, 0) && has(at, 41, 's') && has(at, 44, 'i'); });
  // What the parent does afterwards is nothing to them.
  put(at, 50, 'p');
  ::munmap(at + 60 * kPage, 4 * kPage);
  checkpoint_here();
  EXPECT_TRUE(has(at, 50, 'p'));
  EXPECT_TRUE(has(at, 8, 'i'));
  unsigned char there = 0;
  EXPECT_NE(::mincore(at + 60 * kPage, kPage, &there), 0);
  children.let_go();
}

LIVE_TEST(Inheritance, GrandchildrenAndGrownHeaps) {
  char* heap = static_cast<char*>(::sbrk(256 * static_cast<long>(kPage)));
  ASSERT_NE(heap, reinterpret_cast<char*>(-1));
  heap += kPage - reinterpret_cast<unsigned long>(heap) % kPage;
  for (std::size_t i = 0; i < 250; ++i) {
    put(heap, i, 'h');
  }
  Children children;
  children.make(
      [&] {
        put(heap, 3, 'c');
        char* more = static_cast<char*>(::sbrk(64 * static_cast<long>(kPage)));
        std::memset(more, 'm', 64 * kPage);
        const pid_t grandchild = ::fork();
        if (grandchild == 0) {
          put(heap, 5, 'g');
          children.tell('r');
          children.wait();
          const bool right = has(heap, 3, 'c') && has(heap, 5, 'g') && has(heap, 240, 'h') && more[63 * kPage] == 'm';
          children.tell(right && usage_of(heap).shared_kb >= 200 * 4 ? 'y' : 'n');
          ::_exit(0);
        }
      },
      [&] { return has(heap, 3, 'c') && has(heap, 5, 'h') && has(heap, 249, 'h'); });
  EXPECT_EQ(children.hear(), 'r') << "the grandchild";
  checkpoint_here();
  EXPECT_TRUE(has(heap, 3, 'h'));
  EXPECT_GE(usage_of(heap).shared_kb, 200 * 4);
  children.let_go(1);
}

}  // namespace
}  // namespace ferry::live
