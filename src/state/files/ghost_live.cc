// Files whose names are gone, wholly or in part.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string own_name(const char* what) { return "/tmp/ferry-ghost-" + std::to_string(::getpid()) + "-" + what; }

std::string link_of(int fd) {
  char text[4096] = {};
  const ssize_t n = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), text, sizeof text - 1);
  return n < 0 ? "" : std::string(text, static_cast<std::size_t>(n));
}

std::string content(int fd) {
  char buffer[4096] = {};
  const ssize_t n = ::pread(fd, buffer, sizeof buffer, 0);
  return n < 0 ? "?" : std::string(buffer, static_cast<std::size_t>(n));
}

bool exists(const std::string& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0;
}

int make_file(const std::string& path, const std::string& text, int flags = O_RDWR) {
  const int fd = ::open(path.c_str(), flags | O_CREAT | O_EXCL, 0644);
  if (fd >= 0 && ::write(fd, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return -1;
  }
  return fd;
}

LIVE_TEST(Ghost, KeepsContentOwnerModeAndPosition) {
  const std::string path = own_name("plain");
  const int fd = make_file(path, "content of a file without a name");
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::fchmod(fd, 04751), 0);
  ASSERT_EQ(::fchown(fd, 11, 12), 0);
  ASSERT_EQ(::fchmod(fd, 04751), 0);
  ASSERT_EQ(::lseek(fd, 8, SEEK_SET), 8);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  struct stat st {};
  ASSERT_EQ(::fstat(fd, &st), 0);
  EXPECT_EQ(st.st_nlink, 0U);
  EXPECT_EQ(st.st_mode & 07777, 04751U);
  EXPECT_EQ(st.st_uid, 11U);
  EXPECT_EQ(st.st_gid, 12U);
  EXPECT_EQ(::lseek(fd, 0, SEEK_CUR), 8);
  EXPECT_EQ(content(fd), "content of a file without a name");
  EXPECT_EQ(::write(fd, "CHANGED", 7), 7);
  EXPECT_FALSE(exists(path));
}

LIVE_TEST(Ghost, KeepsHolesBeyondFourGigabytes) {
  const std::string path = own_name("holes");
  const int fd = make_file(path, "head");
  ASSERT_GE(fd, 0);
  const off_t far = (off_t{5} << 30) + 123;
  ASSERT_EQ(::pwrite(fd, "far away", 8, far), 8);
  ASSERT_EQ(::ftruncate(fd, off_t{6} << 30), 0);
  ASSERT_EQ(::lseek(fd, far, SEEK_SET), far);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  struct stat st {};
  ASSERT_EQ(::fstat(fd, &st), 0);
  EXPECT_EQ(st.st_size, off_t{6} << 30);
  EXPECT_LE(st.st_blocks, 64);
  EXPECT_EQ(::lseek(fd, 0, SEEK_CUR), far);
  char got[9] = {};
  EXPECT_EQ(::read(fd, got, 8), 8);
  EXPECT_STREQ(got, "far away");
  EXPECT_EQ(::lseek(fd, 4096, SEEK_DATA), far & ~off_t{4095});
}

LIVE_TEST(Ghost, IsSharedByDescriptionsAndMappings) {
  const std::string path = own_name("shared");
  const int writer = make_file(path, std::string(5000, 'a'));
  ASSERT_GE(writer, 0);
  const int reader = ::open(path.c_str(), O_RDONLY);
  ASSERT_GE(reader, 0);
  auto* memory = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, writer, 0));
  ASSERT_NE(memory, MAP_FAILED);
  auto* copy = static_cast<char*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, reader, 0));
  ASSERT_NE(copy, MAP_FAILED);
  copy[1] = 'p';
  memory[2] = 's';
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  EXPECT_EQ(copy[1], 'p');
  EXPECT_EQ(memory[1], 'a');
  memory[4097] = 'm';
  char byte = 0;
  EXPECT_EQ(::pread(reader, &byte, 1, 4097), 1);
  EXPECT_EQ(byte, 'm');
  EXPECT_EQ(::pread(reader, &byte, 1, 2), 1);
  EXPECT_EQ(byte, 's');
  EXPECT_EQ(::pwrite(writer, "w", 1, 3), 1);
  EXPECT_EQ(memory[3], 'w');
  EXPECT_EQ(::write(reader, "x", 1), -1);
}

LIVE_TEST(Ghost, OfTwoNamesIsOneFile) {
  const std::string a = own_name("a"), b = own_name("b");
  const int first = make_file(a, "one file");
  ASSERT_GE(first, 0);
  ASSERT_EQ(::link(a.c_str(), b.c_str()), 0);
  const int second = ::open(b.c_str(), O_RDWR);
  ASSERT_GE(second, 0);
  ASSERT_EQ(::unlink(a.c_str()), 0);
  ASSERT_EQ(::unlink(b.c_str()), 0);
  checkpoint_here();
  EXPECT_EQ(link_of(first), a + " (deleted)");
  EXPECT_EQ(link_of(second), b + " (deleted)");
  EXPECT_EQ(::pwrite(second, "ONE", 3, 0), 3);
  EXPECT_EQ(content(first), "ONE file");
}

LIVE_TEST_WITH(Ghost, ComesBackBesideAFileThatTookItsName, Options{.leave_running = false}) {
  const std::string path = own_name("again");
  const int old = make_file(path, "old");
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const int fresh = make_file(path, "fresh");
  ASSERT_GE(fresh, 0);
  checkpoint_here();
  EXPECT_EQ(content(old), "old");
  EXPECT_EQ(content(fresh), "fresh");
  EXPECT_EQ(link_of(old), path + " (deleted)");
  EXPECT_EQ(link_of(fresh), path);
  const int reopened = ::open(path.c_str(), O_RDONLY);
  EXPECT_EQ(content(reopened), "fresh");
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST(Ghost, InADirectoryThatIsGoneToo) {
  const std::string outer = own_name("outer"), inner = outer + "/inner", path = inner + "/file";
  ASSERT_EQ(::mkdir(outer.c_str(), 0750), 0);
  ASSERT_EQ(::mkdir(inner.c_str(), 0711), 0);
  const int fd = make_file(path, "deep");
  const int directory = ::open(inner.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_GE(directory, 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  ASSERT_EQ(::rmdir(inner.c_str()), 0);
  ASSERT_EQ(::rmdir(outer.c_str()), 0);
  checkpoint_here();
  EXPECT_EQ(content(fd), "deep");
  EXPECT_EQ(link_of(fd), path + " (deleted)");
  struct stat st {};
  ASSERT_EQ(::fstat(directory, &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0711U);
  EXPECT_EQ(link_of(directory), inner + " (deleted)");
  EXPECT_EQ(::openat(directory, "new", O_CREAT | O_RDWR, 0600), -1);
  EXPECT_FALSE(exists(outer));
}

LIVE_TEST(Ghost, AsWorkingDirectory) {
  const std::string path = own_name("cwd");
  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  ASSERT_EQ(::chdir(path.c_str()), 0);
  ASSERT_EQ(::rmdir(path.c_str()), 0);
  checkpoint_here();
  char buffer[256];
  EXPECT_EQ(::getcwd(buffer, sizeof buffer), nullptr);
  EXPECT_FALSE(exists(path));
  EXPECT_EQ(::chdir("/"), 0);
}

LIVE_TEST_WITH(Ghost, DirectoryBesideOneThatTookItsName, Options{.leave_running = false}) {
  const std::string path = own_name("dir-again");
  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  const int old = ::open(path.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::rmdir(path.c_str()), 0);
  ASSERT_EQ(::mkdir(path.c_str(), 0755), 0);
  const int file = make_file(path + "/f", "x");
  ASSERT_GE(file, 0);
  checkpoint_here();
  struct stat st {};
  ASSERT_EQ(::fstat(old, &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700U);
  EXPECT_TRUE(exists(path + "/f"));
  EXPECT_EQ(::unlink((path + "/f").c_str()), 0);
  EXPECT_EQ(::rmdir(path.c_str()), 0);
}

LIVE_TEST(Ghost, TemporaryFileCanBeLinkedLater) {
  const int fd = ::open("/tmp", O_TMPFILE | O_RDWR, 0640);
  if (fd < 0 && errno == EOPNOTSUPP) {
    GTEST_SKIP() << "/tmp has no O_TMPFILE";
  }
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::write(fd, "unnamed", 7), 7);
  checkpoint_here();
  EXPECT_EQ(content(fd), "unnamed");
  const std::string path = own_name("linked");
  ASSERT_EQ(
      ::linkat(AT_FDCWD, ("/proc/self/fd/" + std::to_string(fd)).c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW), 0)
      << errno;
  const int named = ::open(path.c_str(), O_RDONLY);
  EXPECT_EQ(content(named), "unnamed");
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST(Ghost, FifoKeepsItsBytes) {
  const std::string path = own_name("fifo");
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int reader = ::open(path.c_str(), O_RDONLY | O_NONBLOCK);
  const int writer = ::open(path.c_str(), O_WRONLY);
  ASSERT_GE(writer, 0);
  ASSERT_EQ(::write(writer, "queued", 6), 6);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  char got[8] = {};
  EXPECT_EQ(::read(reader, got, sizeof got), 6);
  EXPECT_STREQ(got, "queued");
  EXPECT_EQ(::write(writer, "more", 4), 4);
  EXPECT_EQ(::read(reader, got, sizeof got), 4);
  ::close(writer);
  EXPECT_EQ(::read(reader, got, sizeof got), 0);
  EXPECT_FALSE(exists(path));
}

LIVE_TEST(Ghost, DeviceNode) {
  const std::string path = own_name("null");
  ASSERT_EQ(::mknod(path.c_str(), S_IFCHR | 0600, makedev(1, 3)), 0);
  const int fd = ::open(path.c_str(), O_RDWR);
  if (fd < 0) {
    ::unlink(path.c_str());
    GTEST_SKIP() << "device nodes do not work in /tmp";
  }
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  struct stat st {};
  ASSERT_EQ(::fstat(fd, &st), 0);
  EXPECT_EQ(st.st_rdev, makedev(1, 3));
  EXPECT_EQ(::write(fd, "x", 1), 1);
  EXPECT_FALSE(exists(path));
}

LIVE_TEST(Ghost, PathOnlyDescriptors) {
  const std::string link = own_name("link"), node = own_name("sock"), file = own_name("path");
  ASSERT_EQ(::symlink("somewhere else", link.c_str()), 0);
  ASSERT_EQ(::mknod(node.c_str(), S_IFSOCK | 0640, 0), 0);
  const int data = make_file(file, "path");
  ::close(data);
  const int by_link = ::open(link.c_str(), O_PATH | O_NOFOLLOW);
  const int by_node = ::open(node.c_str(), O_PATH);
  const int by_file = ::open(file.c_str(), O_PATH);
  ASSERT_GE(by_link, 0);
  ASSERT_GE(by_node, 0);
  ASSERT_GE(by_file, 0);
  ASSERT_EQ(::unlink(link.c_str()), 0);
  ASSERT_EQ(::unlink(node.c_str()), 0);
  ASSERT_EQ(::unlink(file.c_str()), 0);
  checkpoint_here();
  char target[64] = {};
  EXPECT_EQ(::readlinkat(by_link, "", target, sizeof target - 1), 14);
  EXPECT_STREQ(target, "somewhere else");
  struct stat st {};
  EXPECT_EQ(::fstat(by_node, &st), 0);
  EXPECT_TRUE(S_ISSOCK(st.st_mode));
  EXPECT_EQ(st.st_mode & 07777, 0640U);
  const int reopened = ::open(("/proc/self/fd/" + std::to_string(by_file)).c_str(), O_RDONLY);
  EXPECT_EQ(content(reopened), "path");
}

LIVE_TEST_WITH(Ghost, OverTheLimitIsRefused, {.refused = "more than --ghost-limit"}) {
  const std::string path = own_name("big");
  const int fd = make_file(path, std::string(2U << 20, 'b'));
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::fsync(fd), 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  char byte = 0;
  EXPECT_EQ(::pread(fd, &byte, 1, 1 << 20), 1);
}

LIVE_TEST_WITH(Ghost, GoesOverTheLimitWhenAllowed, {.dump = {"--ghost-limit", "4M"}}) {
  const std::string path = own_name("big");
  const int fd = make_file(path, std::string(2U << 20, 'b'));
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  char byte = 0;
  EXPECT_EQ(::pread(fd, &byte, 1, (2 << 20) - 1), 1);
  EXPECT_EQ(byte, 'b');
}

LIVE_TEST_WITH(LinkRemap, IsRefusedWithoutTheOption, {.refused = "--link-remap", .leave_running = false}) {
  const std::string path = own_name("half"), other = own_name("other");
  const int fd = make_file(path, "half");
  ASSERT_EQ(::link(path.c_str(), other.c_str()), 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  EXPECT_EQ(content(fd), "half");
  EXPECT_EQ(::unlink(other.c_str()), 0);
}

LIVE_TEST_WITH(LinkRemap, KeepsTheFileThatOtherNamesHave, {.dump = {"--link-remap"}, .leave_running = false}) {
  const std::string path = own_name("half"), other = own_name("other");
  const int fd = make_file(path, "half");
  const int reader = ::open(path.c_str(), O_RDONLY);
  ASSERT_EQ(::link(path.c_str(), other.c_str()), 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  checkpoint_here();
  struct stat st {};
  struct stat there {};
  ASSERT_EQ(::fstat(fd, &st), 0);
  ASSERT_EQ(::stat(other.c_str(), &there), 0);
  EXPECT_EQ(st.st_ino, there.st_ino);
  EXPECT_EQ(st.st_nlink, 1U) << "the helper's name is gone again";
  EXPECT_EQ(link_of(fd), path + " (deleted)");
  EXPECT_EQ(link_of(reader), path + " (deleted)");
  EXPECT_EQ(::pwrite(fd, "HALF", 4, 0), 4);
  EXPECT_EQ(content(reader), "HALF");
  EXPECT_EQ(::unlink(other.c_str()), 0);
}

LIVE_TEST_WITH(LinkRemap, BesideAFileThatTookTheName, {.dump = {"--link-remap"}, .leave_running = false}) {
  const std::string path = own_name("log"), rotated = own_name("log.1");
  const int fd = make_file(path, "first day", O_WRONLY | O_APPEND);
  const std::string moved = own_name("log.2");
  ASSERT_EQ(::link(path.c_str(), rotated.c_str()), 0);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  const int fresh = make_file(path, "second day");
  ASSERT_GE(fresh, 0);
  checkpoint_here();
  EXPECT_EQ(::write(fd, "!", 1), 1);
  const int again = ::open(rotated.c_str(), O_RDONLY);
  EXPECT_EQ(content(again), "first day!");
  EXPECT_EQ(content(fresh), "second day");
  EXPECT_EQ(::unlink(path.c_str()), 0);
  EXPECT_EQ(::unlink(rotated.c_str()), 0);
}

LIVE_TEST_WITH(RegularFile, FollowsARename, Options{.leave_running = false}) {
  const std::string path = own_name("before"), moved = own_name("after");
  const int fd = make_file(path, "moved");
  ASSERT_EQ(::rename(path.c_str(), moved.c_str()), 0);
  const int decoy = make_file(path, "decoy");
  ASSERT_GE(decoy, 0);
  checkpoint_here();
  EXPECT_EQ(content(fd), "moved");
  EXPECT_EQ(content(decoy), "decoy");
  EXPECT_EQ(::unlink(path.c_str()), 0);
  EXPECT_EQ(::unlink(moved.c_str()), 0);
}

LIVE_TEST_WITH(RegularFile, WhoseNameEndsInDeleted, Options{.leave_running = false}) {
  const std::string path = own_name("name") + " (deleted)";
  const int fd = make_file(path, "there");
  ASSERT_GE(fd, 0);
  checkpoint_here();
  EXPECT_EQ(content(fd), "there");
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST_WITH(RegularFile, KeepsFlagsAndOffsets, Options{.leave_running = false}) {
  const std::string path = own_name("flags");
  const int fd = make_file(path, "0123456789");
  const int append = ::open(path.c_str(), O_WRONLY | O_APPEND | O_NOATIME | O_CLOEXEC);
  const int direct = ::open(path.c_str(), O_RDONLY | O_DIRECT);
  const int synced = ::open(path.c_str(), O_RDWR | O_DSYNC);
  const off_t far = off_t{7} << 32;
  ASSERT_EQ(::lseek(synced, far, SEEK_SET), far);
  const int flags = direct < 0 ? 0 : ::fcntl(direct, F_GETFL);
  checkpoint_here();
  EXPECT_EQ(::fcntl(append, F_GETFD), FD_CLOEXEC);
  EXPECT_NE(::fcntl(append, F_GETFL) & O_NOATIME, 0);
  EXPECT_EQ(::write(append, "abc", 3), 3);
  EXPECT_EQ(content(fd), "0123456789abc");
  if (direct >= 0) {
    EXPECT_EQ(::fcntl(direct, F_GETFL), flags);
  }
  EXPECT_NE(::fcntl(synced, F_GETFL) & O_DSYNC, 0);
  EXPECT_EQ(::lseek(synced, 0, SEEK_CUR), far);
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST_WITH(RegularFile, OfAChrootedProcess, Options{.leave_running = false}) {
  const std::string root = own_name("root");
  ASSERT_EQ(::mkdir(root.c_str(), 0755), 0);
  ASSERT_EQ(::mkdir((root + "/sub").c_str(), 0755), 0);
  const int outside = make_file(own_name("outside"), "out");
  ASSERT_EQ(::chroot(root.c_str()), 0);
  ASSERT_EQ(::chdir("/sub"), 0);
  const int inside = make_file("/in", "in");
  const int gone = make_file("/gone", "gone");
  ASSERT_EQ(::unlink("/gone"), 0);
  ASSERT_GE(inside, 0);
  checkpoint_here();
  EXPECT_EQ(content(outside), "out");
  EXPECT_EQ(content(inside), "in");
  EXPECT_EQ(content(gone), "gone");
  char buffer[64] = {};
  EXPECT_NE(::getcwd(buffer, sizeof buffer), nullptr);
  EXPECT_STREQ(buffer, "/sub");
  EXPECT_TRUE(exists("/in"));
  EXPECT_EQ(::unlink("/in"), 0);
  EXPECT_EQ(::rmdir("/sub"), 0);
}

}  // namespace
}  // namespace ferry::live
