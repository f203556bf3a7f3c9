#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string content_of(const char* path) {
  std::string out(4096, '\0');
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  const ssize_t size = fd < 0 ? 0 : ::read(fd, out.data(), out.size());
  ::close(fd);
  out.resize(size < 0 ? 0 : static_cast<std::size_t>(size));
  return out;
}

// /dev/shm is a tmpfs of the tree's own in this flavour.
LIVE_TEST_WITH(Tmpfs, KeepsWhatIsInIt, Options{.host = false, .leave_running = false}) {
  const int fd = ::open("/dev/shm/kept", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::write(fd, "hello", 5), 5);
  ::close(fd);
  ASSERT_EQ(::chmod("/dev/shm/kept", 04751), 0);
  ASSERT_EQ(::link("/dev/shm/kept", "/dev/shm/hard"), 0);
  ASSERT_EQ(::symlink("kept", "/dev/shm/soft"), 0);

  checkpoint_here();

  EXPECT_EQ(content_of("/dev/shm/soft"), "hello");
  struct stat kept {};
  struct stat hard {};
  ASSERT_EQ(::stat("/dev/shm/kept", &kept), 0);
  ASSERT_EQ(::stat("/dev/shm/hard", &hard), 0);
  EXPECT_EQ(kept.st_mode & 07777, 04751U);
  EXPECT_EQ(kept.st_ino, hard.st_ino);
}

// The kernel answers by the pid namespace that the mount was made in.
LIVE_TEST_WITH(Procfs, ShowsTheTreesOwnNumbers, Options{.host = false, .leave_running = false}) {
  checkpoint_here();
  char link[32] = {};
  ASSERT_GT(::readlink("/proc/self", link, sizeof link - 1), 0);
  EXPECT_EQ(std::to_string(::getpid()), link);
}

}  // namespace
}  // namespace ferry::live
