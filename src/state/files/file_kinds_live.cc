// Descriptors of everything that has a path.
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string own_name(const char* what) { return "/tmp/ferry-kind-" + std::to_string(::getpid()) + "-" + what; }

std::string read_all(int fd) {
  std::string out;
  char buffer[512];
  for (ssize_t n = 0; (n = ::read(fd, buffer, sizeof buffer)) > 0;) {
    out.append(buffer, static_cast<std::size_t>(n));
  }
  return out;
}

LIVE_TEST(FileKinds, PathOnlyDescriptorsOfEveryKind) {
  const std::string base = own_name("paths");
  ASSERT_EQ(::mkdir(base.c_str(), 0755), 0);
  ASSERT_EQ(::mkfifo((base + "/fifo").c_str(), 0600), 0);
  ASSERT_EQ(::symlink("nowhere", (base + "/link").c_str()), 0);
  ASSERT_EQ(::close(::open((base + "/file").c_str(), O_CREAT | O_WRONLY, 0600)), 0);
  const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", base.c_str());
  ASSERT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  const char* const names[] = {"", "/fifo", "/link", "/file", "/socket"};
  const mode_t kinds[] = {S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK};
  int fds[5];
  for (std::size_t i = 0; i < 5; ++i) {
    fds[i] = ::open((base + names[i]).c_str(), O_PATH | O_NOFOLLOW | (i == 3 ? O_CLOEXEC : 0));
    ASSERT_GE(fds[i], 0) << names[i];
  }
  const int null = ::open("/dev/null", O_PATH);
  checkpoint_here();
  for (std::size_t i = 0; i < 5; ++i) {
    struct stat st {};
    ASSERT_EQ(::fstat(fds[i], &st), 0);
    EXPECT_EQ(st.st_mode & S_IFMT, kinds[i]) << names[i];
    EXPECT_NE(::fcntl(fds[i], F_GETFL) & O_PATH, 0);
    EXPECT_EQ(::fcntl(fds[i], F_GETFD), i == 3 ? FD_CLOEXEC : 0);
    char byte = 0;
    EXPECT_EQ(::read(fds[i], &byte, 1), -1);
  }
  struct stat st {};
  ASSERT_EQ(::fstat(null, &st), 0);
  EXPECT_EQ(st.st_rdev, makedev(1, 3));
  char target[16] = {};
  EXPECT_EQ(::readlinkat(fds[2], "", target, sizeof target), 7);
  const int through = ::openat(fds[0], "file", O_RDONLY);
  EXPECT_GE(through, 0);
}

LIVE_TEST(FileKinds, DirectoriesThatWereReadHalfway) {
  const std::string base = own_name("directory");
  ASSERT_EQ(::mkdir(base.c_str(), 0755), 0);
  std::set<std::string> left;
  for (int i = 0; i < 200; ++i) {
    const std::string name = "entry-with-a-long-name-" + std::to_string(i);
    ASSERT_EQ(::close(::open((base + "/" + name).c_str(), O_CREAT | O_WRONLY, 0600)), 0);
    left.insert(name);
  }
  DIR* directory = ::opendir(base.c_str());
  ASSERT_NE(directory, nullptr);
  for (int i = 0; i < 100; ++i) {
    left.erase(::readdir(directory)->d_name);
  }
  const long position = ::telldir(directory);
  checkpoint_here();
  while (const dirent* entry = ::readdir(directory)) {
    left.erase(entry->d_name);
  }
  EXPECT_TRUE(left.empty()) << *left.begin();
  ::seekdir(directory, position);
  EXPECT_EQ(::telldir(directory), position);
}

LIVE_TEST(FileKinds, FlagsOfEveryKind) {
  const std::string path = own_name("flags");
  const int flags[] = {O_RDONLY,         O_WRONLY | O_APPEND,   O_RDWR | O_SYNC,
                       O_RDWR | O_DSYNC, O_RDWR | O_NONBLOCK,   O_RDONLY | O_NOATIME,
                       O_RDWR | O_ASYNC, O_RDONLY | O_LARGEFILE};
  std::vector<int> fds, before;
  ASSERT_EQ(::close(::open(path.c_str(), O_CREAT | O_WRONLY, 0600)), 0);
  for (const int f : flags) {
    fds.push_back(::open(path.c_str(), f));
    ASSERT_GE(fds.back(), 0) << std::oct << f;
    before.push_back(::fcntl(fds.back(), F_GETFL));
  }
  const int far = ::open(path.c_str(), O_RDWR);
  ASSERT_EQ(::lseek(far, off_t{5} << 32, SEEK_SET), off_t{5} << 32);
  const int again = ::fcntl(far, F_DUPFD_CLOEXEC, 700);
  checkpoint_here();
  for (std::size_t i = 0; i < fds.size(); ++i) {
    EXPECT_EQ(::fcntl(fds[i], F_GETFL), before[i]) << std::oct << before[i];
  }
  EXPECT_EQ(::lseek(again, 0, SEEK_CUR), off_t{5} << 32);
  EXPECT_EQ(::lseek(far, 7, SEEK_SET), 7);
  EXPECT_EQ(::lseek(again, 0, SEEK_CUR), 7) << "one description";
  EXPECT_EQ(::fcntl(again, F_GETFD), FD_CLOEXEC);
}

LIVE_TEST(FileKinds, FilesOfTheKernel) {
  const int maps = ::open("/proc/self/maps", O_RDONLY);
  const int hostname = ::open("/proc/sys/kernel/hostname", O_RDONLY);
  const int self = ::open("/proc/self", O_RDONLY | O_DIRECTORY);
  const int descriptors = ::open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
  const int task = ::open(("/proc/self/task/" + std::to_string(::gettid()) + "/status").c_str(), O_RDONLY);
  const int one = ::open("/proc/1/status", O_RDONLY);
  const int meminfo = ::open("/proc/meminfo", O_RDONLY);
  const int score = ::open("/proc/self/oom_score_adj", O_RDWR);
  ASSERT_GE(score, 0);
  char head[16];
  ASSERT_EQ(::read(maps, head, sizeof head), 16);
  ASSERT_EQ(::lseek(maps, 0, SEEK_SET), 0);
  checkpoint_here();
  EXPECT_NE(read_all(maps).find("[stack]"), std::string::npos);
  EXPECT_FALSE(read_all(hostname).empty());
  EXPECT_GE(::openat(self, "stat", O_RDONLY), 0);
  EXPECT_EQ(::faccessat(descriptors, std::to_string(maps).c_str(), F_OK, 0), 0);
  EXPECT_NE(read_all(task).find("\nPid:\t" + std::to_string(::gettid()) + "\n"), std::string::npos);
  EXPECT_NE(read_all(one).find("\nPid:\t1\n"), std::string::npos);
  EXPECT_NE(read_all(meminfo).find("MemTotal"), std::string::npos);
  EXPECT_EQ(::write(score, "17", 2), 2);
}

LIVE_TEST(FileKinds, DescriptorsOfNamespaces) {
  const char* const kinds[] = {"net", "uts", "ipc", "pid", "user", "mnt", "cgroup", "time"};
  std::vector<int> fds;
  for (const char* const kind : kinds) {
    fds.push_back(::open((std::string("/proc/self/ns/") + kind).c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_GE(fds.back(), 0) << kind;
  }
  checkpoint_here();
  for (std::size_t i = 0; i < fds.size(); ++i) {
    struct stat own {};
    struct stat held {};
    ASSERT_EQ(::stat((std::string("/proc/self/ns/") + kinds[i]).c_str(), &own), 0);
    ASSERT_EQ(::fstat(fds[i], &held), 0);
    EXPECT_EQ(own.st_ino, held.st_ino) << kinds[i];
    EXPECT_EQ(::fcntl(fds[i], F_GETFD), FD_CLOEXEC);
  }
}

LIVE_TEST(FileKinds, WorkingDirectoryInProc) {
  ASSERT_EQ(::chdir("/proc/self/task"), 0);
  checkpoint_here();
  char buffer[256] = {};
  ASSERT_NE(::getcwd(buffer, sizeof buffer), nullptr);
  EXPECT_EQ(std::string(buffer), "/proc/" + std::to_string(::getpid()) + "/task");
}

LIVE_TEST(FileKinds, SharedMemoryByName) {
  const std::string name = "/ferry-" + std::to_string(::getpid());
  const int fd = ::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  if (fd < 0) {
    GTEST_SKIP() << "no /dev/shm here";
  }
  ASSERT_EQ(::ftruncate(fd, 8192), 0);
  auto* at = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ASSERT_NE(at, MAP_FAILED);
  at[5000] = 's';
  ASSERT_EQ(::shm_unlink(name.c_str()), 0);
  const int reader = ::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY);
  ASSERT_GE(reader, 0);
  checkpoint_here();
  EXPECT_EQ(at[5000], 's');
  at[5001] = 'n';
  char two[2] = {};
  EXPECT_EQ(::pread(reader, two, 2, 5000), 2);
  EXPECT_EQ(two[1], 'n') << "one file";
}

LIVE_TEST_WITH(FileKinds, InDirectoriesThatWereRenamed, {.leave_running = false}) {
  const std::string base = own_name("renamed"), now = own_name("now");
  ASSERT_EQ(::mkdir(base.c_str(), 0755), 0);
  const int fd = ::open((base + "/file").c_str(), O_CREAT | O_RDWR, 0600);
  const int inside = ::open(base.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::write(fd, "content", 7), 7);
  ASSERT_EQ(::chdir(base.c_str()), 0);
  ASSERT_EQ(::rename(base.c_str(), now.c_str()), 0);
  // Another one has the name now.
  ASSERT_EQ(::mkdir(base.c_str(), 0755), 0);
  checkpoint_here();
  char text[8] = {};
  EXPECT_EQ(::pread(fd, text, 7, 0), 7);
  EXPECT_EQ(std::string(text), "content");
  EXPECT_EQ(::faccessat(inside, "file", F_OK, 0), 0);
  EXPECT_EQ(::access("file", F_OK), 0);
  char cwd[256] = {};
  EXPECT_EQ(std::string(::getcwd(cwd, sizeof cwd)), now);
  EXPECT_EQ(::rmdir(base.c_str()), 0);
}

LIVE_TEST(FileKinds, DevicesOfMemory) {
  const int null = ::open("/dev/null", O_WRONLY | O_APPEND);
  const int zero = ::open("/dev/zero", O_RDONLY);
  const int full = ::open("/dev/full", O_RDWR);
  const int random = ::open("/dev/urandom", O_RDONLY | O_NONBLOCK);
  ASSERT_GE(random, 0);
  checkpoint_here();
  char byte = 'x';
  EXPECT_EQ(::write(null, "x", 1), 1);
  EXPECT_EQ(::read(zero, &byte, 1), 1);
  EXPECT_EQ(byte, 0);
  EXPECT_EQ(::write(full, "x", 1), -1);
  EXPECT_EQ(::read(random, &byte, 1), 1);
  EXPECT_NE(::fcntl(random, F_GETFL) & O_NONBLOCK, 0);
}

}  // namespace
}  // namespace ferry::live
