// Attributes of processes that few programs use.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

LIVE_TEST(Attributes, KeepsIoFlusher) {
  constexpr int kSet = 57, kGet = 58;
  if (::prctl(kSet, 1, 0, 0, 0) != 0) {
    GTEST_SKIP() << "may not become an I/O flusher: " << std::strerror(errno);
  }
  checkpoint_here();
  EXPECT_EQ(::prctl(kGet, 0, 0, 0, 0), 1);
}

LIVE_TEST(Attributes, KeepsNoNewPrivilegesAndKeepCapabilities) {
  ASSERT_EQ(::prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), 0);
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  checkpoint_here();
  EXPECT_EQ(::prctl(PR_GET_KEEPCAPS, 0, 0, 0, 0), 1);
  EXPECT_EQ(::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

LIVE_TEST(Attributes, KeepsTheLogin) {
  const std::string before = first_line("/proc/self/loginuid");
  checkpoint_here();
  EXPECT_EQ(first_line("/proc/self/loginuid"), before);
}

LIVE_TEST(Attributes, MergeableMemory) {
  char* at = static_cast<char*>(::mmap(nullptr, 8 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(at, MAP_FAILED);
  std::memset(at, 'm', 8 * 4096);
  if (::madvise(at, 8 * 4096, MADV_MERGEABLE) != 0) {
    GTEST_SKIP() << "no KSM";
  }
  checkpoint_here();
  EXPECT_EQ(at[4096], 'm');
  std::ifstream smaps("/proc/self/smaps");
  bool found = false;
  for (std::string line; std::getline(smaps, line);) {
    found |= line.rfind("VmFlags:", 0) == 0 && line.find(" mg") != std::string::npos;
  }
  EXPECT_TRUE(found);
}

}  // namespace
}  // namespace ferry::live
