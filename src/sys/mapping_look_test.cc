#include "sys/mapping_look.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <sstream>

#include "sys/file.h"

namespace ferry::sys {
namespace {

std::set<std::string> words(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

// Large enough to be looked at, with many mappings that differ.
pid_t make_large_process() {
  int ends[2];
  if (::pipe(ends) != 0) {
    return -1;
  }
  const pid_t child = ::fork();
  if (child == 0) {
    constexpr int kAdvice[] = {MADV_DONTFORK, MADV_DONTDUMP,   MADV_WIPEONFORK,
                               MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_NORMAL};
    for (int i = 0; i < 3000; ++i) {
      void* at =
          ::mmap(nullptr, 8192, i % 2 == 0 ? PROT_READ | PROT_WRITE : PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      ::madvise(at, 8192, kAdvice[i % 6]);
    }
    (void)!::write(ends[1], "", 1);
    for (;;) {
      ::pause();
    }
  }
  char byte;
  const bool ready = ::read(ends[0], &byte, 1) == 1;
  ::close(ends[0]);
  ::close(ends[1]);
  return ready ? child : -1;
}

TEST(MappingLookOfThisKernel, SaysWhatSmapsSays) {
  auto look = MappingLook::open();
  if (!look.has_value()) {
    GTEST_SKIP() << look.error().message();
  }
  const pid_t child = make_large_process();
  ASSERT_GT(child, 0);
  const UniqueFd proc(::open(fmt::format("/proc/{}", child).c_str(), O_PATH | O_DIRECTORY));
  look->expect(HostPid(child));
  const auto looked = look->mappings_of(HostPid(child), proc.get());
  const auto smaps = read_file_at(proc.get(), "smaps");
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ASSERT_TRUE(looked.has_value() && smaps.has_value());
  const auto expected = parse_maps(*smaps);
  ASSERT_TRUE(expected.has_value());
  ASSERT_EQ(looked->size(), expected->size());
  ASSERT_GE(looked->size(), 3000U);
  for (std::size_t i = 0; i < looked->size(); ++i) {
    const Mapping &a = (*looked)[i], &b = (*expected)[i];
    EXPECT_EQ(a.start, b.start);
    EXPECT_EQ(a.name, b.name);
    if (a.name != "[vsyscall]") {
      EXPECT_EQ(words(a.vm_flags), words(b.vm_flags)) << fmt::format("{:x}-{:x} {}", a.start, a.end, a.name);
    }
  }
  // It was the look that said so, not smaps: that says "rd" first.
  EXPECT_NE(looked->front().vm_flags, expected->front().vm_flags);
}

}  // namespace
}  // namespace ferry::sys
