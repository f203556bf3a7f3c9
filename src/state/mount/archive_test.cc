#include "state/mount/archive.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <thread>

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

  const Result<std::string> archive = in(from.path(), [] { return archive_here(); });
  ASSERT_TRUE(archive.has_value()) << archive.error().message();
  EXPECT_LT(archive->size(), 65536U) << "holes were written out";
  const Result<void> extracted = in(to.path(), [&] { return extract_here(*archive); });
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

TEST(TmpfsArchive, RefusesBytesThatAreNoArchive) {
  const Scratch to;
  const Result<void> extracted = in(to.path(), [] { return extract_here("no archive at all, but some text"); });
  ASSERT_FALSE(extracted.has_value());
}

TEST(TmpfsArchive, RefusesACutArchive) {
  const Scratch from, to;
  std::ofstream(from / "file") << std::string(100'000, 'x') << std::rand();
  const Result<std::string> archive = in(from.path(), [] { return archive_here(); });
  ASSERT_TRUE(archive.has_value());
  const Result<void> extracted =
      in(to.path(), [&] { return extract_here(std::string_view(*archive).substr(0, archive->size() / 2)); });
  EXPECT_FALSE(extracted.has_value());
}

}  // namespace
}  // namespace ferry::state::mount
