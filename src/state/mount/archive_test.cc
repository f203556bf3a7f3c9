#include "state/mount/archive.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>

#include "base/unique_fd.h"

namespace ferry::state::mount {
namespace {

namespace fs = std::filesystem;

// A directory of the test's own.
class Scratch {
 public:
  Scratch() {
    std::string pattern = fs::temp_directory_path() / "ferry-archive-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  [[nodiscard]] fs::path operator/(const char* name) const { return path_ / name; }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Runs `work` on a thread whose current directory is `directory`.
template <class Work>
auto in(const fs::path& directory, Work work) {
  std::optional<decltype(work())> out;
  std::thread([&] {
    ASSERT_EQ(::unshare(CLONE_FS), 0);
    ASSERT_EQ(::chdir(directory.c_str()), 0);
    out = work();
  }).join();
  return std::move(*out);
}

struct stat stat_of(const fs::path& path) {
  struct stat st {};
  EXPECT_EQ(::lstat(path.c_str(), &st), 0) << path;
  return st;
}

Result<Archived> archive_of(const fs::path& directory) {
  const UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return archive_tree(fd.get());
}

TEST(TmpfsArchive, KeepsModesLinksHolesAndTimes) {
  const Scratch from, to;
  fs::create_directory(from / "d");
  std::ofstream(from / "d/file") << "content";
  ASSERT_EQ(::chmod((from / "d/file").c_str(), 04711), 0);
  ASSERT_EQ(::link((from / "d/file").c_str(), (from / "hard").c_str()), 0);
  ASSERT_EQ(::symlink("nowhere at all", (from / "soft").c_str()), 0);
  ASSERT_EQ(::mkfifo((from / "fifo").c_str(), 0600), 0);
  std::ofstream(from / "empty");
  // 8 MiB of which the last byte is written, and one byte in the middle of a hole.
  const int sparse = ::open((from / "sparse").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
  ASSERT_GE(sparse, 0);
  ASSERT_EQ(::pwrite(sparse, "m", 1, 4 << 20), 1);
  ASSERT_EQ(::pwrite(sparse, "e", 1, (8 << 20) - 1), 1);
  ::close(sparse);
  const timespec times[2] = {{1000, 0}, {2000, 5000}};
  ASSERT_EQ(::utimensat(AT_FDCWD, (from / "d").c_str(), times, 0), 0);
  ASSERT_EQ(::chmod((from / "d").c_str(), 01750), 0);
  ASSERT_EQ(::chmod(from.path().c_str(), 01777), 0);

  const Result<Archived> archive = archive_of(from.path());
  ASSERT_TRUE(archive.has_value()) << archive.error().message();
  EXPECT_LT(archive->bytes.size(), 65536U) << "holes were written out";
  const Result<void> extracted = in(to.path(), [&] { return extract_here(archive->bytes); });
  ASSERT_TRUE(extracted.has_value()) << extracted.error().message();

  EXPECT_EQ(stat_of(to.path()).st_mode & 07777, 01777U);
  EXPECT_EQ(stat_of(to / "d").st_mode & 07777, 01750U);
  EXPECT_EQ(stat_of(to / "d").st_mtim.tv_sec, 2000);
  EXPECT_EQ(stat_of(to / "d").st_mtim.tv_nsec, 5000);
  EXPECT_EQ(stat_of(to / "d/file").st_mode & 07777, 04711U);
  EXPECT_EQ(stat_of(to / "d/file").st_nlink, 2U);
  EXPECT_EQ(stat_of(to / "d/file").st_ino, stat_of(to / "hard").st_ino);
  EXPECT_EQ(fs::read_symlink(to / "soft"), "nowhere at all");
  EXPECT_TRUE(S_ISFIFO(stat_of(to / "fifo").st_mode));
  EXPECT_EQ(stat_of(to / "empty").st_size, 0);
  EXPECT_EQ(stat_of(to / "sparse").st_size, 8 << 20);
  std::ifstream hard(to / "hard");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(hard), {}), "content");
  const int copy = ::open((to / "sparse").c_str(), O_RDONLY | O_CLOEXEC);
  char byte = 0;
  EXPECT_EQ(::pread(copy, &byte, 1, 4 << 20), 1);
  EXPECT_EQ(byte, 'm');
  EXPECT_EQ(::pread(copy, &byte, 1, (8 << 20) - 1), 1);
  EXPECT_EQ(byte, 'e');
  EXPECT_EQ(::pread(copy, &byte, 1, 5 << 20), 1);
  EXPECT_EQ(byte, 0);
  ::close(copy);
}

TEST(TmpfsArchive, KeepsAttributesAndAccessLists) {
  const Scratch from, to;
  std::ofstream(from / "file") << "x";
  fs::create_directory(from / "d");
  ASSERT_EQ(::setxattr((from / "file").c_str(), "trusted.mark", "one", 3, 0), 0);
  // acl(5) as the kernel takes it: version 2, owner rw, user 1000 r, group r, mask r, others none
  const std::uint8_t list[] = {2, 0,   0,   0,   1,   0,   6,  0, 255, 255, 255, 255, 2,   0,  4,
                               0, 232, 3,   0,   0,   4,   0,  4, 0,   255, 255, 255, 255, 16, 0,
                               4, 0,   255, 255, 255, 255, 32, 0, 0,   0,   255, 255, 255, 255};
  ASSERT_EQ(::setxattr((from / "file").c_str(), "system.posix_acl_access", list, sizeof list, 0), 0);
  ASSERT_EQ(::setxattr((from / "d").c_str(), "system.posix_acl_default", list, sizeof list, 0), 0);

  const Result<Archived> archive = archive_of(from.path());
  ASSERT_TRUE(archive.has_value()) << archive.error().message();
  const Result<void> extracted = in(to.path(), [&] { return extract_here(archive->bytes); });
  ASSERT_TRUE(extracted.has_value()) << extracted.error().message();

  std::uint8_t got[256];
  EXPECT_EQ(::getxattr((to / "file").c_str(), "trusted.mark", got, sizeof got), 3);
  ASSERT_EQ(::getxattr((to / "file").c_str(), "system.posix_acl_access", got, sizeof got), ssize_t{sizeof list});
  EXPECT_EQ(std::memcmp(got, list, sizeof list), 0);
  ASSERT_EQ(::getxattr((to / "d").c_str(), "system.posix_acl_default", got, sizeof got), ssize_t{sizeof list});
  EXPECT_EQ(std::memcmp(got, list, sizeof list), 0);
}

TEST(TmpfsArchive, NamesSocketsForWhichTarHasNoWord) {
  const Scratch from, to;
  fs::create_directory(from / "d");
  ASSERT_EQ(::mknod((from / "d/s").c_str(), S_IFSOCK | 0600, 0), 0);
  ASSERT_EQ(::chmod((from / "d/s").c_str(), 0751), 0);
  const Result<Archived> archive = archive_of(from.path());
  ASSERT_TRUE(archive.has_value()) << archive.error().message();
  ASSERT_EQ(archive->sockets.size(), 1U);
  EXPECT_EQ(archive->sockets[0].path, "./d/s");
  const Result<void> extracted = in(to.path(), [&] { return extract_here(archive->bytes); });
  ASSERT_TRUE(extracted.has_value()) << extracted.error().message();
  const UniqueFd root(::open(to.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ASSERT_TRUE(make_sockets(root.get(), archive->sockets).has_value());
  EXPECT_TRUE(S_ISSOCK(stat_of(to / "d/s").st_mode));
  EXPECT_EQ(stat_of(to / "d/s").st_mode & 07777, 0751U);
  EXPECT_EQ(stat_of(to / "d").st_mtim.tv_nsec, stat_of(from / "d").st_mtim.tv_nsec);
}

TEST(TmpfsArchive, RefusesBytesThatAreNoArchive) {
  const Scratch to;
  const Result<void> extracted = in(to.path(), [] { return extract_here("no archive at all, but some text"); });
  ASSERT_FALSE(extracted.has_value());
}

TEST(TmpfsArchive, RefusesACutArchive) {
  const Scratch from, to;
  std::ofstream(from / "file") << std::string(100'000, 'x') << std::rand();
  const Result<Archived> archive = archive_of(from.path());
  ASSERT_TRUE(archive.has_value());
  const Result<void> extracted = in(
      to.path(), [&] { return extract_here(std::string_view(archive->bytes).substr(0, archive->bytes.size() / 2)); });
  EXPECT_FALSE(extracted.has_value());
}

}  // namespace
}  // namespace ferry::state::mount
