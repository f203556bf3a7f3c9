#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(MemfdKinds, SealsOfEachKind) {
  constexpr unsigned kNoExec = 8;  // MFD_NOEXEC_SEAL
  const unsigned kinds[] = {F_SEAL_WRITE, F_SEAL_SHRINK | F_SEAL_GROW, F_SEAL_WRITE | F_SEAL_SEAL,
                            0x10 /* FUTURE_WRITE */};
  int fds[std::size(kinds)];
  for (std::size_t i = 0; i < std::size(kinds); ++i) {
    fds[i] = ::memfd_create("sealed", MFD_ALLOW_SEALING);
    ASSERT_EQ(::write(fds[i], "content", 7), 7);
    ASSERT_EQ(::fcntl(fds[i], F_ADD_SEALS, kinds[i]), 0) << i;
  }
  const int noexec = ::memfd_create("noexec", kNoExec);
  const int plain = ::memfd_create("plain", 0);
  ASSERT_EQ(::ftruncate(plain, 10'000), 0);
  const int noexec_seals = noexec < 0 ? 0 : ::fcntl(noexec, F_GET_SEALS);
  struct stat before {};
  ::fstat(noexec, &before);
  checkpoint_here();
  for (std::size_t i = 0; i < std::size(kinds); ++i) {
    EXPECT_EQ(static_cast<unsigned>(::fcntl(fds[i], F_GET_SEALS)), kinds[i]);
    char got[8] = {};
    EXPECT_EQ(::pread(fds[i], got, 7, 0), 7);
    EXPECT_STREQ(got, "content");
  }
  EXPECT_EQ(::write(fds[0], "x", 1), -1);
  EXPECT_EQ(::write(fds[3], "x", 1), -1);
  if (noexec >= 0) {
    EXPECT_EQ(::fcntl(noexec, F_GET_SEALS), noexec_seals);
    struct stat after {};
    ::fstat(noexec, &after);
    EXPECT_EQ(after.st_mode, before.st_mode);
  }
  EXPECT_EQ(::fcntl(plain, F_GET_SEALS), F_SEAL_SEAL);
  struct stat st {};
  ASSERT_EQ(::fstat(plain, &st), 0);
  EXPECT_EQ(st.st_size, 10'000);
}

LIVE_TEST(MemfdKinds, SealedAgainstFutureWritesAndMappedWritable) {
  const int fd = ::memfd_create("future", MFD_ALLOW_SEALING);
  ASSERT_EQ(::ftruncate(fd, 8192), 0);
  auto* at = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(at, MAP_FAILED);
  at[0] = 'm';
  ASSERT_EQ(::fcntl(fd, F_ADD_SEALS, 0x10), 0);
  checkpoint_here();
  EXPECT_EQ(at[0], 'm');
  at[4096] = 'n';
  char byte = 0;
  EXPECT_EQ(::pread(fd, &byte, 1, 4096), 1);
  EXPECT_EQ(byte, 'n');
  EXPECT_EQ(::pwrite(fd, "x", 1, 0), -1);
  EXPECT_EQ(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  EXPECT_EQ(::fcntl(fd, F_GET_SEALS), 0x10);
}

LIVE_TEST(MemfdKinds, SeveralDescriptionsAndMappings) {
  const int fd = ::memfd_create("many", 0);
  ASSERT_EQ(::ftruncate(fd, 3 * 4096), 0);
  const int reader = ::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY);
  ASSERT_EQ(::lseek(reader, 100, SEEK_SET), 100);
  auto* read_only = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ, MAP_SHARED, reader, 4096));
  auto* copy = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
  ASSERT_NE(copy, MAP_FAILED);
  copy[0] = 'c';
  ASSERT_EQ(::pwrite(fd, "shared", 6, 4096), 6);
  checkpoint_here();
  EXPECT_EQ(std::string(read_only, 6), "shared");
  EXPECT_EQ(copy[0], 'c');
  EXPECT_EQ(std::string(copy + 4096, 6), "shared");
  EXPECT_EQ(::lseek(reader, 0, SEEK_CUR), 100);
  EXPECT_EQ(::write(reader, "x", 1), -1);
  EXPECT_EQ(::pwrite(fd, "SHARED", 6, 4096), 6);
  EXPECT_EQ(std::string(read_only, 6), "SHARED");
}

}  // namespace
}  // namespace ferry::live
