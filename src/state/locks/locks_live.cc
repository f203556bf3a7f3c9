#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string own_name(const char* what) { return "/tmp/ferry-locks-" + std::to_string(::getpid()) + "-" + what; }

int make_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0644);
  return fd >= 0 && ::write(fd, "0123456789", 10) == 10 ? fd : -1;
}

struct flock range(short type, off_t start, off_t length) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = length;
  return lock;
}

// What another process would find in its way.
struct flock in_the_way(const std::string& path, struct flock wanted) {
  int ends[2];
  if (::pipe(ends) != 0) {
    return {};
  }
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::open(path.c_str(), O_RDWR);
    ::fcntl(fd, F_GETLK, &wanted);
    (void)!::write(ends[1], &wanted, sizeof wanted);
    ::_exit(0);
  }
  struct flock got {};
  (void)!::read(ends[0], &got, sizeof got);
  ::waitpid(child, nullptr, 0);
  ::close(ends[0]);
  ::close(ends[1]);
  return got;
}

LIVE_TEST_WITH(FileLocks, PosixRangesOfBothTypes,
               {.dump = {"--file-locks"}, .restore = {"--file-locks"}, .leave_running = false}) {
  const std::string path = own_name("posix");
  const int fd = make_file(path);
  ASSERT_GE(fd, 0);
  struct flock write_lock = range(F_WRLCK, 10, 5), read_lock = range(F_RDLCK, 100, 0);
  ASSERT_EQ(::fcntl(fd, F_SETLK, &write_lock), 0);
  ASSERT_EQ(::fcntl(fd, F_SETLK, &read_lock), 0);
  checkpoint_here();
  struct flock got = in_the_way(path, range(F_RDLCK, 0, 50));
  EXPECT_EQ(got.l_type, F_WRLCK);
  EXPECT_EQ(got.l_start, 10);
  EXPECT_EQ(got.l_len, 5);
  EXPECT_EQ(got.l_pid, ::getpid());
  got = in_the_way(path, range(F_WRLCK, 1000, 1));
  EXPECT_EQ(got.l_type, F_RDLCK);
  EXPECT_EQ(got.l_start, 100);
  EXPECT_EQ(got.l_len, 0);
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST_WITH(FileLocks, OpenFileDescriptionLocks,
               {.dump = {"--file-locks"}, .restore = {"--file-locks"}, .leave_running = false}) {
  const std::string path = own_name("ofd");
  const int fd = make_file(path);
  struct flock lock = range(F_WRLCK, 3, 4);
  ASSERT_EQ(::fcntl(fd, F_OFD_SETLK, &lock), 0);
  checkpoint_here();
  const int other = ::open(path.c_str(), O_RDWR);
  struct flock wanted = range(F_WRLCK, 0, 0);
  ASSERT_EQ(::fcntl(other, F_OFD_GETLK, &wanted), 0);
  EXPECT_EQ(wanted.l_type, F_WRLCK);
  EXPECT_EQ(wanted.l_pid, -1);
  EXPECT_EQ(wanted.l_start, 3);
  ::close(fd);
  wanted = range(F_WRLCK, 0, 0);
  ASSERT_EQ(::fcntl(other, F_OFD_GETLK, &wanted), 0);
  EXPECT_EQ(wanted.l_type, F_UNLCK);
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST_WITH(FileLocks, FlockSharedByFork,
               {.dump = {"--file-locks"}, .restore = {"--file-locks"}, .leave_running = false}) {
  const std::string path = own_name("flock");
  const int fd = make_file(path);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  int go[2], say[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = 0;
    (void)!::read(go[0], &byte, 1);
    byte = ::flock(fd, LOCK_UN) == 0 ? 'y' : 'n';  // the one lock that both have
    (void)!::write(say[1], &byte, 1);
    ::_exit(0);
  }
  checkpoint_here();
  const int other = ::open(path.c_str(), O_RDWR);
  EXPECT_EQ(::flock(other, LOCK_EX | LOCK_NB), -1);
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  char byte = 0;
  ASSERT_EQ(::read(say[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  EXPECT_EQ(::flock(other, LOCK_EX | LOCK_NB), 0);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST_WITH(FileLocks, AWaiterGetsItsLockInTheEnd,
               {.dump = {"--file-locks"}, .restore = {"--file-locks"}, .leave_running = false}) {
  const std::string path = own_name("waiter");
  const int fd = make_file(path);
  struct flock lock = range(F_WRLCK, 0, 0);
  ASSERT_EQ(::fcntl(fd, F_OFD_SETLK, &lock), 0);
  const int other = ::open(path.c_str(), O_RDWR);
  std::atomic<pid_t> tid{0};
  int outcome = -1;
  std::thread thread([&] {
    tid = ::gettid();
    struct flock wanted = range(F_WRLCK, 0, 0);
    outcome = ::fcntl(other, F_OFD_SETLKW, &wanted);
  });
  ASSERT_TRUE(detail::wait_until_in_call(tid, SYS_fcntl));
  checkpoint_here();
  EXPECT_EQ(outcome, -1) << "nobody has let go yet";
  lock.l_type = F_UNLCK;
  ASSERT_EQ(::fcntl(fd, F_OFD_SETLK, &lock), 0);
  thread.join();
  EXPECT_EQ(outcome, 0);
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST_WITH(FileLocks, Leases, {.dump = {"--file-locks"}, .restore = {"--file-locks"}, .leave_running = false}) {
  const std::string read_path = own_name("lease-r"), write_path = own_name("lease-w");
  ::close(make_file(read_path));
  const int reader = ::open(read_path.c_str(), O_RDONLY);
  const int writer = make_file(write_path);
  if (::fcntl(reader, F_SETLEASE, F_RDLCK) != 0 || ::fcntl(writer, F_SETLEASE, F_WRLCK) != 0) {
    ::unlink(read_path.c_str());
    ::unlink(write_path.c_str());
    GTEST_SKIP() << "no leases on this filesystem";
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGIO);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  checkpoint_here();
  EXPECT_EQ(::fcntl(reader, F_GETLEASE), F_RDLCK);
  EXPECT_EQ(::fcntl(writer, F_GETLEASE), F_WRLCK);
  sigset_t pending;
  ASSERT_EQ(::sigpending(&pending), 0);
  EXPECT_EQ(::sigismember(&pending, SIGIO), 0);
  EXPECT_EQ(::open(write_path.c_str(), O_RDONLY | O_NONBLOCK), -1);
  const timespec limit{5, 0};
  EXPECT_EQ(::sigtimedwait(&set, nullptr, &limit), SIGIO);
  EXPECT_EQ(::fcntl(writer, F_GETLEASE), F_RDLCK) << "what is asked for";
  EXPECT_EQ(::unlink(read_path.c_str()), 0);
  EXPECT_EQ(::unlink(write_path.c_str()), 0);
}

LIVE_TEST_WITH(FileLocks, ALeaseThatIsBeingBroken,
               {.dump = {"--file-locks"}, .restore = {"--file-locks"}, .leave_running = false}) {
  const std::string path = own_name("lease-b");
  const int writer = make_file(path);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGIO);
  ASSERT_EQ(::sigprocmask(SIG_BLOCK, &set, nullptr), 0);
  if (::fcntl(writer, F_SETLEASE, F_WRLCK) != 0) {
    ::unlink(path.c_str());
    GTEST_SKIP() << "no leases on this filesystem";
  }
  ASSERT_EQ(::open(path.c_str(), O_RDONLY | O_NONBLOCK), -1);
  const timespec limit{5, 0};
  ASSERT_EQ(::sigtimedwait(&set, nullptr, &limit), SIGIO);
  checkpoint_here();
  EXPECT_EQ(::fcntl(writer, F_GETLEASE), F_RDLCK);
  sigset_t pending;
  ASSERT_EQ(::sigpending(&pending), 0);
  EXPECT_EQ(::sigismember(&pending, SIGIO), 0) << "it was told before";
  EXPECT_EQ(::fcntl(writer, F_SETLEASE, F_UNLCK), 0);
  EXPECT_GE(::open(path.c_str(), O_RDONLY | O_NONBLOCK), 0);
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST_WITH(FileLocks, AreRefusedWithoutTheOption,
               {.refused = "--file-locks carries locks over", .leave_running = false}) {
  const std::string path = own_name("refused");
  const int fd = make_file(path);
  ASSERT_EQ(::flock(fd, LOCK_SH), 0);
  checkpoint_here();
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

}  // namespace
}  // namespace ferry::live
