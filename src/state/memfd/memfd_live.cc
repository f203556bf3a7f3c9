#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(Memfd, KeepsContentHolesSealsAndPosition) {
  const int fd = ::memfd_create("kept", MFD_ALLOW_SEALING);
  ASSERT_EQ(::ftruncate(fd, (8 << 20) + 100), 0);
  ASSERT_EQ(::pwrite(fd, "far", 3, 5 << 20), 3);
  ASSERT_EQ(::pwrite(fd, "end", 3, (8 << 20) + 97), 3);
  ASSERT_EQ(::fchmod(fd, 0640), 0);
  ASSERT_EQ(::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE), 0);
  ASSERT_EQ(::lseek(fd, 5 << 20, SEEK_SET), 5 << 20);
  checkpoint_here();
  char got[4] = {};
  EXPECT_EQ(::read(fd, got, 3), 3) << "from where it stood";
  EXPECT_STREQ(got, "far");
  EXPECT_EQ(::pread(fd, got, 3, (8 << 20) + 97), 3);
  EXPECT_STREQ(got, "end");
  struct stat st {};
  ASSERT_EQ(::fstat(fd, &st), 0);
  EXPECT_EQ(st.st_size, (8 << 20) + 100);
  EXPECT_EQ(st.st_mode & 0777, 0640U);
  EXPECT_LT(st.st_blocks * 512, 1 << 20) << "holes stay holes";
  EXPECT_EQ(::fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_WRITE);
}

LIVE_TEST(Memfd, TwoDescriptionsShareOneFile) {
  const int fd = ::memfd_create("shared", 0);
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const int reader = ::open(path.c_str(), O_RDONLY);
  ASSERT_GE(reader, 0);
  checkpoint_here();
  ASSERT_EQ(::write(fd, "seen", 4), 4);
  char got[8] = {};
  EXPECT_EQ(::read(reader, got, sizeof got), 4);
  EXPECT_STREQ(got, "seen");
  EXPECT_EQ(::write(reader, "x", 1), -1);
}

}  // namespace
}  // namespace ferry::live
