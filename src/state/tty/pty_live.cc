// Pseudoterminals in odd states.
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string take(int fd) {
  char buffer[256] = {};
  const ssize_t n = ::read(fd, buffer, sizeof buffer);
  return n < 0 ? "?" : std::string(buffer, static_cast<std::size_t>(n));
}

void make_raw(int fd) {
  termios modes{};
  ASSERT_EQ(::tcgetattr(fd, &modes), 0);
  ::cfmakeraw(&modes);
  ASSERT_EQ(::tcsetattr(fd, TCSANOW, &modes), 0);
}

LIVE_TEST(Pty, MasterAlone) {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
  ASSERT_GE(master, 0);
  ASSERT_EQ(::unlockpt(master), 0);
  const std::string name = ::ptsname(master);
  checkpoint_here();
  EXPECT_EQ(::ptsname(master), name);
  const int slave = ::open(name.c_str(), O_RDWR | O_NOCTTY);
  ASSERT_GE(slave, 0);
  make_raw(slave);
  EXPECT_EQ(::write(master, "in", 2), 2);
  EXPECT_EQ(take(slave), "in");
}

LIVE_TEST(Pty, LockedMasterStaysLocked) {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(master, 0);
  const std::string name = ::ptsname(master);
  checkpoint_here();
  EXPECT_EQ(::open(name.c_str(), O_RDWR | O_NOCTTY), -1);
  EXPECT_EQ(errno, EIO);
  EXPECT_EQ(::unlockpt(master), 0);
  EXPECT_GE(::open(name.c_str(), O_RDWR | O_NOCTTY), 0);
}

LIVE_TEST(Pty, MasterWhoseSlaveWasClosedWithOutputLeft) {
  int master = -1, slave = -1;
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  make_raw(slave);
  ASSERT_EQ(::write(slave, "left", 4), 4);
  ::close(slave);
  checkpoint_here();
  EXPECT_EQ(take(master), "left");
  char byte = 0;
  EXPECT_EQ(::read(master, &byte, 1), -1);
  EXPECT_EQ(errno, EIO);
}

LIVE_TEST(Pty, SlaveWhoseMasterIsClosed) {
  int master = -1, slave = -1;
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  struct sigaction ignore {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGHUP, &ignore, nullptr);
  ::close(master);
  checkpoint_here();
  char byte = 0;
  EXPECT_EQ(::read(slave, &byte, 1), 0) << "hung up";
  EXPECT_EQ(::write(slave, "x", 1), -1);
  EXPECT_EQ(errno, EIO);
  pollfd p{slave, POLLIN, 0};
  EXPECT_EQ(::poll(&p, 1, 0), 1);
  EXPECT_NE(p.revents & POLLHUP, 0);
}

LIVE_TEST(Pty, SeveralPairsAndDescriptions) {
  int masters[4], slaves[4], again[4];
  std::string names[4];
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(::openpty(&masters[i], &slaves[i], nullptr, nullptr, nullptr), 0);
    make_raw(slaves[i]);
    names[i] = ::ptsname(masters[i]);
    again[i] = ::open(names[i].c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK);
    ASSERT_GE(again[i], 0);
  }
  ::close(masters[1]);  // leaves a gap in the numbers
  ::close(slaves[1]);
  ::close(again[1]);
  checkpoint_here();
  for (const int i : {0, 2, 3}) {
    EXPECT_EQ(::ptsname(masters[i]), names[i]);
    EXPECT_EQ(::write(masters[i], "abc", 3), 3);
    EXPECT_EQ(take(again[i]), "abc");
    EXPECT_EQ(::fcntl(again[i], F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDONLY | O_NONBLOCK);
    EXPECT_EQ(::fcntl(slaves[i], F_GETFL) & (O_ACCMODE | O_NONBLOCK), O_RDWR);
  }
}

LIVE_TEST(Pty, ExclusiveAndPacketMode) {
  int master = -1, slave = -1;
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  make_raw(slave);
  const int on = 1;
  ASSERT_EQ(::ioctl(master, TIOCPKT, &on), 0);
  ASSERT_EQ(::ioctl(slave, TIOCEXCL), 0);
  checkpoint_here();
  int exclusive = 0;
  EXPECT_EQ(::ioctl(slave, TIOCGEXCL, &exclusive), 0);
  EXPECT_EQ(exclusive, 1);
  ASSERT_EQ(::write(slave, "data", 4), 4);
  EXPECT_EQ(take(master), std::string("\0data", 5));
}

LIVE_TEST(Pty, PacketModeWithOutputLeft) {
  int master = -1, slave = -1;
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  make_raw(slave);
  const int on = 1;
  ASSERT_EQ(::ioctl(master, TIOCPKT, &on), 0);
  ASSERT_EQ(::write(slave, "left", 4), 4);
  checkpoint_here();
  EXPECT_EQ(take(master), std::string("\0left", 5));
}

LIVE_TEST(Pty, CanonicalLinesTypedAndNotRead) {
  int master = -1, slave = -1;
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  ASSERT_EQ(::write(master, "first\nsecond\nhalf", 17), 17);
  const std::string echo = take(master);
  ASSERT_FALSE(echo.empty());
  checkpoint_here();
  EXPECT_EQ(take(slave), "first\n");
  EXPECT_EQ(take(slave), "second\n");
  ASSERT_EQ(::write(master, " line\n", 6), 6);
  EXPECT_EQ(take(slave), "half line\n");
}

// The leader has closed its terminal but keeps it as the controlling one.
LIVE_TEST(Pty, ControllingTerminalThatTheLeaderHasNotOpen) {
  int master = -1, slave = -1, go[2], say[2];
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::setsid();
    ::ioctl(slave, TIOCSCTTY, 0);
    ::close(slave);
    ::close(master);
    char byte = 'r';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    const int tty = ::open("/dev/tty", O_RDWR);
    byte = tty >= 0 && ::tcgetsid(tty) == ::getpid() ? 'y' : 'n';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  checkpoint_here();
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

// A shell's job: a process group of its own in the foreground.
LIVE_TEST(Pty, ForegroundGroupOfAJob) {
  int master = -1, slave = -1, say[2], go[2];
  ASSERT_EQ(::openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  ASSERT_EQ(::pipe(say), 0);
  ASSERT_EQ(::pipe(go), 0);
  const pid_t shell = ::fork();
  if (shell == 0) {
    ::setsid();
    ::ioctl(slave, TIOCSCTTY, 0);
    ::signal(SIGTTOU, SIG_IGN);
    const pid_t job = ::fork();
    if (job == 0) {
      ::setpgid(0, 0);
      for (;;) {
        ::pause();
      }
    }
    ::setpgid(job, job);
    ::tcsetpgrp(slave, job);
    char byte = 'r';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    byte = ::tcgetpgrp(slave) == job ? 'y' : 'n';
    (void)!::write(say[1], &byte, 1);
    int status = 0;
    ::waitpid(job, &status, 0);  // ended by the ^C
    byte = WIFSIGNALED(status) && WTERMSIG(status) == SIGINT ? 'i' : 'n';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  checkpoint_here();
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  ASSERT_EQ(::write(master, "\003", 1), 1);
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'i');
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(::waitpid(shell, nullptr, 0), shell);
}

}  // namespace
}  // namespace ferry::live
