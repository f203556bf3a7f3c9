// Files of procfs.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "live/live.h"
#include "live/other_thread.h"

namespace ferry::live {
namespace {

std::string text_of(int fd) {
  char buffer[4096] = {};
  const ssize_t n = ::pread(fd, buffer, sizeof buffer - 1, 0);
  return n < 0 ? "" : std::string(buffer, static_cast<std::size_t>(n));
}

LIVE_TEST(ProcFile, OfOneselfAndAChild) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) {
      ::pause();
    }
  }
  const std::string proc = "/proc/" + std::to_string(child);
  const int status = ::open("/proc/self/status", O_RDONLY), directory = ::open(proc.c_str(), O_RDONLY | O_DIRECTORY);
  const int task = ::open("/proc/self/task", O_RDONLY), fds = ::open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
  const int maps = ::open((proc + "/maps").c_str(), O_RDONLY), mounts = ::open("/proc/self/mountinfo", O_RDONLY);
  const int memory = ::open("/proc/self/mem", O_RDWR), net = ::open("/proc/self/ns/net", O_RDONLY);
  const int uptime = ::open("/proc/uptime", O_RDONLY), sys = ::open("/proc/sys/kernel/pid_max", O_RDONLY);
  ASSERT_GE(sys, 0);
  char byte = 0;
  ASSERT_EQ(::read(status, &byte, 1), 1);
  checkpoint_here();
  EXPECT_EQ(::read(status, &byte, 1), 1);
  EXPECT_EQ(byte, 'a') << "the second letter of Name";
  EXPECT_NE(text_of(status).find("Pid:\t" + std::to_string(::getpid())), std::string::npos);
  EXPECT_GE(::openat(directory, "stat", O_RDONLY), 0);
  EXPECT_GE(::openat(task, std::to_string(::getpid()).c_str(), O_RDONLY), 0);
  EXPECT_EQ(::faccessat(fds, std::to_string(status).c_str(), F_OK, AT_SYMLINK_NOFOLLOW), 0);
  EXPECT_NE(text_of(maps).find("[stack]"), std::string::npos);
  EXPECT_NE(text_of(mounts).find(" / "), std::string::npos);
  EXPECT_FALSE(text_of(uptime).empty());
  EXPECT_FALSE(text_of(sys).empty());
  volatile int number = 42;
  int seen = 0;
  EXPECT_EQ(::pread(memory, &seen, sizeof seen, reinterpret_cast<off_t>(&number)), static_cast<ssize_t>(sizeof seen));
  EXPECT_EQ(seen, 42);
  struct stat a {};
  struct stat b {};
  EXPECT_EQ(::fstat(net, &a), 0);
  EXPECT_EQ(::stat("/proc/self/ns/net", &b), 0);
  EXPECT_EQ(a.st_ino, b.st_ino);
  ::kill(child, SIGKILL);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

LIVE_TEST(ProcFile, OfADeadProcess) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) {
      ::pause();
    }
  }
  const std::string proc = "/proc/" + std::to_string(child);
  const int file = ::open((proc + "/status").c_str(), O_RDONLY),
            directory = ::open(proc.c_str(), O_RDONLY | O_DIRECTORY);
  const int task = ::open((proc + "/task/" + std::to_string(child) + "/comm").c_str(), O_RDONLY);
  ASSERT_GE(task, 0);
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  char byte = 0;
  ASSERT_EQ(::read(file, &byte, 1), -1);
  ASSERT_EQ(errno, ESRCH);
  checkpoint_here();
  EXPECT_EQ(::read(file, &byte, 1), -1);
  EXPECT_EQ(errno, ESRCH);
  EXPECT_EQ(::openat(directory, "stat", O_RDONLY), -1);
  EXPECT_EQ(::read(task, &byte, 1), -1);
  EXPECT_EQ(::kill(child, 0), -1);
  EXPECT_EQ(errno, ESRCH);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

// The stand-in is a process, not a thread of this one, which the name of the descriptor shows.
LIVE_TEST_WITH(ProcFile, OfADeadThread, {.changes = true}) {
  OtherThread other;
  const std::string task = "/proc/self/task/" + std::to_string(other.tid());
  const int file = ::open((task + "/comm").c_str(), O_RDONLY), directory = ::open(task.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_GE(directory, 0);
  other.end();
  char byte = 0;
  while (::pread(file, &byte, 1, 0) == 1) {  // the kernel's own end of the thread comes after join
    ::sched_yield();
  }
  checkpoint_here();
  EXPECT_EQ(::pread(file, &byte, 1, 0), -1);
  EXPECT_EQ(::openat(directory, "stat", O_RDONLY), -1);
}

LIVE_TEST(ProcFile, OfADeadChildThatIsAWorkingDirectory) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) {
      ::pause();
    }
  }
  ASSERT_EQ(::chdir(("/proc/" + std::to_string(child)).c_str()), 0);
  ::kill(child, SIGKILL);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  checkpoint_here();
  struct stat st {};
  EXPECT_EQ(::stat("status", &st), -1);
  EXPECT_EQ(::chdir("/"), 0);
}

}  // namespace
}  // namespace ferry::live
