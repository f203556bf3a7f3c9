// Terminals that are devices: virtual terminals here, because every host with CONFIG_VT has some that nobody uses.
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

// Left running, the copy and the source would hold one device.  In a user namespace nodes of devices cannot be made.
const Options kOneAtATime{.leave_running = false, .user_namespace = false};

std::string terminal(unsigned minor) {
  const std::string path = "/tmp/ferry-vt-" + std::to_string(::getpid()) + "-" + std::to_string(minor);
  EXPECT_EQ(::mknod(path.c_str(), S_IFCHR | 0600, makedev(4, minor)), 0);
  return path;
}

LIVE_TEST_WITH(TtyDevice, KeepsModesOfVirtualTerminals, kOneAtATime) {
  const std::string path = terminal(41), other_path = terminal(42);
  const int fd = ::open(path.c_str(), O_RDWR | O_NOCTTY);
  if (fd < 0) {
    GTEST_SKIP() << "no virtual terminals";
  }
  const int other = ::open(other_path.c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK);
  termios modes{};
  ASSERT_EQ(::tcgetattr(fd, &modes), 0);
  const termios before = modes;
  modes.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
  modes.c_cc[VINTR] = 5;
  ASSERT_EQ(::tcsetattr(fd, TCSANOW, &modes), 0);
  checkpoint_here();
  struct stat st {};
  ASSERT_EQ(::fstat(fd, &st), 0);
  EXPECT_EQ(st.st_rdev, makedev(4, 41));
  ASSERT_EQ(::fstat(other, &st), 0);
  EXPECT_EQ(st.st_rdev, makedev(4, 42));
  EXPECT_EQ(::fcntl(other, F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
  termios got{};
  ASSERT_EQ(::tcgetattr(fd, &got), 0);
  EXPECT_EQ(got.c_lflag, modes.c_lflag);
  EXPECT_EQ(got.c_cc[VINTR], 5);
  EXPECT_EQ(::tcsetattr(fd, TCSANOW, &before), 0);
  EXPECT_EQ(::unlink(path.c_str()), 0);
  EXPECT_EQ(::unlink(other_path.c_str()), 0);
}

LIVE_TEST_WITH(TtyDevice, StaysTheControllingTerminal, kOneAtATime) {
  const std::string path = terminal(43);
  int go[2], say[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::setsid();
    const int fd = ::open(path.c_str(), O_RDWR);
    char byte = fd >= 0 && ::ioctl(fd, TIOCSCTTY, 0) == 0 ? 'r' : 'f';
    const int current = ::open("/dev/tty", O_RDWR);
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    const bool same =
        ::tcgetsid(fd) == ::getpid() && ::tcgetpgrp(fd) == ::getpgrp() && ::tcgetsid(current) == ::getpid();
    byte = same ? 'y' : 'n';
    (void)!::write(say[1], &byte, 1);
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  if (byte != 'r') {
    GTEST_SKIP() << "no virtual terminals";
  }
  checkpoint_here();
  ASSERT_EQ(::write(go[1], "g", 1), 1);
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

}  // namespace
}  // namespace ferry::live
