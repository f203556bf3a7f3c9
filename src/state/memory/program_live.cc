// What the kernel keeps of the program that was started: its file, its words, its break and its stack.
#include <elf.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string read_text(const char* path) {
  std::ifstream file(path);
  std::stringstream out;
  out << file.rdbuf();
  return out.str();
}

LIVE_TEST(Program, KeepsItsWords) {
  const std::string words = read_text("/proc/self/cmdline"), variables = read_text("/proc/self/environ"),
                    vector = read_text("/proc/self/auxv");
  const unsigned long random = ::getauxval(AT_RANDOM);
  checkpoint_here();
  EXPECT_EQ(read_text("/proc/self/cmdline"), words);
  EXPECT_EQ(read_text("/proc/self/environ"), variables);
  EXPECT_EQ(read_text("/proc/self/auxv"), vector);
  EXPECT_EQ(::getauxval(AT_RANDOM), random);
}

LIVE_TEST(Program, KeepsATitleOfItsOwn) {
  constexpr std::size_t kPage = 4096;
  char* at = static_cast<char*>(::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  std::strcpy(at, "worker: idle");
  if (::prctl(PR_SET_MM, PR_SET_MM_ARG_START, at, 0, 0) != 0) {
    GTEST_SKIP() << "may not change its words: " << std::strerror(errno);
  }
  ASSERT_EQ(::prctl(PR_SET_MM, PR_SET_MM_ARG_END, at + 13, 0, 0), 0);
  checkpoint_here();
  EXPECT_EQ(read_text("/proc/self/cmdline"), std::string("worker: idle\0", 13));
}

LIVE_TEST(Program, BreakMovesOnFromWhereItWas) {
  auto* const before = static_cast<char*>(::sbrk(3 * 4096 + 17));
  ASSERT_NE(before, reinterpret_cast<char*>(-1));
  before[0] = 'b';
  char* const end = static_cast<char*>(::sbrk(0));
  checkpoint_here();
  EXPECT_EQ(::sbrk(0), end);
  EXPECT_EQ(before[0], 'b');
  ASSERT_EQ(::sbrk(4096), end);
  end[100] = 'n';
  EXPECT_NE(::sbrk(-4096), reinterpret_cast<void*>(-1));
}

// A child that runs a copy of a shell, whose file is gone by the time of the checkpoint, as after an upgrade.
LIVE_TEST_WITH(Program, WhoseFileWasDeleted, {.dump = {"--ghost-limit", "8M"}}) {
  const std::string path = "/tmp/ferry-program-" + std::to_string(::getpid());
  std::ofstream(path, std::ios::binary) << std::ifstream("/bin/busybox", std::ios::binary).rdbuf();
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0 || st.st_size < 1000) {
    GTEST_SKIP() << "no busybox here";
  }
  ASSERT_EQ(::chmod(path.c_str(), 0755), 0);
  int go[2], say[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(go[0], 0);
    ::dup2(say[1], 1);
    ::execl(path.c_str(), "busybox", "sh", "-c", "echo r; read line; echo $line", nullptr);
    ::_exit(1);
  }
  char text[16] = {};
  ASSERT_EQ(::read(say[0], text, sizeof text), 2);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  char link[256] = {};
  ASSERT_GT(::readlink(("/proc/" + std::to_string(child) + "/exe").c_str(), link, sizeof link - 1), 0);
  EXPECT_NE(std::string(link).find(path), std::string::npos) << link;
  EXPECT_EQ(::stat(path.c_str(), &st), -1);
  ASSERT_EQ(::write(go[1], "hi\n", 3), 3);
  EXPECT_EQ(::read(say[0], text, sizeof text), 3);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

LIVE_TEST(Program, WithoutAnyDescriptor) {
  int status = 0;
  auto* const shared =
      static_cast<std::atomic<int>*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const pid_t child = ::fork();
  if (child == 0) {
    ::close_range(0, ~0U, 0);
    *shared = 1;
    while (*shared != 2) {
      ::sched_yield();
    }
    ::_exit(::open("/", O_RDONLY) == 0 ? 42 : 1);
  }
  while (*shared != 1) {
    ::sched_yield();
  }
  checkpoint_here();
  *shared = 2;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 42);
}

}  // namespace
}  // namespace ferry::live
