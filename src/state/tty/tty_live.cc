#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(Tty, KeepsAPairItsModesAndItsData) {
  int master = -1, slave = -1;
  winsize size{24, 99, 0, 0};
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, &size), 0);
  termios modes{};
  ASSERT_EQ(::tcgetattr(slave, &modes), 0);
  modes.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  modes.c_oflag &= ~static_cast<tcflag_t>(OPOST);
  modes.c_cc[VINTR] = 7;
  ASSERT_EQ(::tcsetattr(slave, TCSANOW, &modes), 0);
  ASSERT_EQ(::write(slave, "output\n", 7), 7);
  ASSERT_EQ(::write(master, "typed\n", 6), 6);
  const std::string name = ::ptsname(master);
  checkpoint_here();
  EXPECT_EQ(::ptsname(master), name);
  winsize got_size{};
  ASSERT_EQ(::ioctl(slave, TIOCGWINSZ, &got_size), 0);
  EXPECT_EQ(got_size.ws_col, 99);
  termios got{};
  ASSERT_EQ(::tcgetattr(slave, &got), 0);
  EXPECT_EQ(got.c_lflag, modes.c_lflag);
  EXPECT_EQ(got.c_oflag, modes.c_oflag);
  EXPECT_EQ(got.c_cc[VINTR], 7);
  char buffer[32] = {};
  EXPECT_EQ(::read(master, buffer, sizeof buffer), 7);
  EXPECT_EQ(std::string(buffer, 7), "output\n");
  EXPECT_EQ(::read(slave, buffer, sizeof buffer), 6);
  EXPECT_EQ(std::string(buffer, 6), "typed\n");
}

// The child leads a session whose terminal it has open, also as /dev/tty, and tells through a pipe
// what it sees after the checkpoint.
LIVE_TEST(Tty, KeepsTheControllingTerminal) {
  int master = -1, slave = -1, go[2], say[2];
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::setsid();
    ::ioctl(slave, TIOCSCTTY, 0);
    const int current = ::open("/dev/tty", O_RDWR);
    char byte = current >= 0 ? 'r' : 'f';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    const int again = ::open("/dev/tty", O_RDWR);
    byte = ::tcgetsid(slave) == ::getpid() && ::tcgetpgrp(current) == ::getpgrp() && again >= 0 ? 'y' : 'n';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'r');
  checkpoint_here();
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

LIVE_TEST_WITH(Tty, RefusesASlaveWhoseMasterIsOutside,
               {.refused = "the other side of this terminal is outside of the tree", .pid_namespace = false}) {
  // A master that is no descriptor of the tree: in a child that has left it by the session's rules it
  // would still be a child, so the console of this machine's own devpts has to do.
  int master = -1, slave = -1, keep[2];
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  ASSERT_EQ(::pipe(keep), 0);
  const pid_t middle = ::fork();
  if (middle == 0) {
    if (::fork() == 0) {  // orphaned, so it is no descendant any more
      ::setsid();
      ::close(slave);
      ::close(keep[1]);
      char byte = 0;
      (void)!::read(keep[0], &byte, 1);  // until the test is over
      ::_exit(0);
    }
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(middle, nullptr, 0), middle);
  ::close(master);
  ::close(keep[0]);
  checkpoint_here();
  EXPECT_EQ(::isatty(slave), 1);
}

}  // namespace
}  // namespace ferry::live
