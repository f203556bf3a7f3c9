#include "container/layer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "base/unique_fd.h"
#include "container/temp_directory.h"

namespace ferry::container {
namespace {

struct stat stat_of(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(::lstat(path.c_str(), &info), 0) << path;
  return info;
}

std::string attribute(const std::string& path, const char* name) {
  char value[256];
  const ssize_t size = ::lgetxattr(path.c_str(), name, value, sizeof value);
  return size < 0 ? "(none)" : std::string(value, static_cast<std::size_t>(size));
}

class Layer : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) {
      GTEST_SKIP() << "needs root: whiteouts and trusted attributes";
    }
    from_ = dir_ / "from";
    to_ = dir_ / "to";
    ASSERT_EQ(::mkdir(from_.c_str(), 0755), 0);
    ASSERT_EQ(::mkdir(to_.c_str(), 0755), 0);
  }

  // Through a file, as a checkpoint does.
  void carry() {
    const std::string tar = dir_ / "layer.tar";
    const UniqueFd fd(::open(tar.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    const auto packed = pack_layer(from_, fd.get());
    ASSERT_TRUE(packed.has_value()) << packed.error().message();
    EXPECT_EQ(packed->bytes, static_cast<std::uint64_t>(stat_of(tar).st_size));
    ::lseek(fd.get(), 0, SEEK_SET);
    const auto unpacked = unpack_layer(fd.get(), to_);
    ASSERT_TRUE(unpacked.has_value()) << unpacked.error().message();
    EXPECT_EQ(packed->entries, unpacked->entries);
  }

  TempDirectory dir_;
  std::string from_;
  std::string to_;
};

TEST_F(Layer, KeepsWhiteoutsAndOpaqueDirectories) {
  ASSERT_EQ(::mknod((from_ + "/gone").c_str(), S_IFCHR, makedev(0, 0)), 0);
  ASSERT_EQ(::mkdir((from_ + "/opaque").c_str(), 0750), 0);
  ASSERT_EQ(::lsetxattr((from_ + "/opaque").c_str(), "trusted.overlay.opaque", "y", 1, 0), 0);
  carry();
  const auto gone = stat_of(to_ + "/gone");
  EXPECT_TRUE(S_ISCHR(gone.st_mode));
  EXPECT_EQ(gone.st_rdev, makedev(0, 0));
  EXPECT_EQ(attribute(to_ + "/opaque", "trusted.overlay.opaque"), "y");
  EXPECT_EQ(stat_of(to_ + "/opaque").st_mode & 07777U, 0750U);
}

TEST_F(Layer, LeavesAttributesThatNameInodesBehind) {
  write_text(from_ + "/f", "x");
  ASSERT_EQ(::lsetxattr((from_ + "/f").c_str(), "trusted.overlay.origin", "o", 1, 0), 0);
  ASSERT_EQ(::lsetxattr((from_ + "/f").c_str(), "trusted.other", "kept", 4, 0), 0);
  carry();
  EXPECT_EQ(attribute(to_ + "/f", "trusted.overlay.origin"), "(none)");
  EXPECT_EQ(attribute(to_ + "/f", "trusted.other"), "kept");
}

TEST_F(Layer, KeepsHardLinksOwnersModesAndTimes) {
  write_text(from_ + "/a", "content");
  ASSERT_EQ(::chown((from_ + "/a").c_str(), 1234, 5678), 0);
  ASSERT_EQ(::chmod((from_ + "/a").c_str(), 04751), 0);
  const timespec times[2] = {{1000000000, 111}, {1111111111, 123456789}};
  ASSERT_EQ(::utimensat(AT_FDCWD, (from_ + "/a").c_str(), times, 0), 0);
  ASSERT_EQ(::link((from_ + "/a").c_str(), (from_ + "/b").c_str()), 0);
  ASSERT_EQ(::symlink("a", (from_ + "/s").c_str()), 0);
  ASSERT_EQ(::mkfifo((from_ + "/fifo").c_str(), 0600), 0);
  carry();
  const auto a = stat_of(to_ + "/a");
  EXPECT_EQ(a.st_ino, stat_of(to_ + "/b").st_ino);
  EXPECT_EQ(a.st_uid, 1234U);
  EXPECT_EQ(a.st_gid, 5678U);
  EXPECT_EQ(a.st_mode & 07777U, 04751U);
  EXPECT_EQ(a.st_mtim.tv_sec, 1111111111);
  EXPECT_EQ(a.st_mtim.tv_nsec, 123456789);
  EXPECT_EQ(read_text(to_ + "/b"), "content");
  EXPECT_TRUE(S_ISLNK(stat_of(to_ + "/s").st_mode));
  EXPECT_TRUE(S_ISFIFO(stat_of(to_ + "/fifo").st_mode));
}

TEST_F(Layer, KeepsHoles) {
  const std::string path = from_ + "/sparse";
  {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    ASSERT_EQ(::pwrite(fd.get(), "end", 3, 64 << 20), 3);
    ASSERT_EQ(::ftruncate(fd.get(), 100 << 20), 0);
  }
  carry();
  const auto info = stat_of(to_ + "/sparse");
  EXPECT_EQ(info.st_size, 100 << 20);
  EXPECT_LT(info.st_blocks * 512, 1 << 20);
  EXPECT_LT(stat_of(dir_ / "layer.tar").st_size, 1 << 20);
  const UniqueFd fd(::open((to_ + "/sparse").c_str(), O_RDONLY | O_CLOEXEC));
  char end[4] = "";
  EXPECT_EQ(::pread(fd.get(), end, 3, 64 << 20), 3);
  EXPECT_STREQ(end, "end");
}

TEST_F(Layer, KeepsAFileThatIsNothingButAHole) {
  {
    const UniqueFd fd(::open((from_ + "/hole").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    ASSERT_EQ(::ftruncate(fd.get(), 100 << 20), 0);
    const UniqueFd behind(::open((from_ + "/behind").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    ASSERT_EQ(::write(behind.get(), "x", 1), 1);
  }
  carry();
  const auto info = stat_of(to_ + "/hole");
  EXPECT_EQ(info.st_size, 100 << 20);
  EXPECT_LT(info.st_blocks * 512, 1 << 20);
  EXPECT_EQ(stat_of(to_ + "/behind").st_size, 1);
}

// Its length is in the header already when its content is read.
TEST_F(Layer, AFileThatChangesItsLengthOnTheWayDoesNotBreakTheStream) {
  const std::string path = from_ + "/sparse";
  const UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  ASSERT_TRUE(file);
  std::atomic<bool> done = false;
  std::thread writer([&] {
    while (!done) {
      (void)!::ftruncate(file.get(), 0);
      (void)!::ftruncate(file.get(), 1 << 20);
      (void)!::pwrite(file.get(), "middle", 6, 512 << 10);
    }
  });
  for (int i = 0; i < 2000 && !HasFailure(); ++i) {
    const UniqueFd tar(::open((dir_ / "layer.tar").c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    const auto packed = pack_layer_entries(from_, {"sparse", "."}, {.may_change = true}, tar.get());
    ASSERT_TRUE(packed.has_value()) << packed.error().message();
    ::lseek(tar.get(), 0, SEEK_SET);
    const auto unpacked = unpack_layer(tar.get(), to_);
    EXPECT_TRUE(unpacked.has_value()) << i << ": " << unpacked.error().message();
  }
  done = true;
  writer.join();
}

TEST_F(Layer, KeepsSocketsAndNamesOfAnyBytes) {
  const UniqueFd bound(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = from_ + "/sock";
  std::memcpy(address.sun_path, path.data(), path.size());
  ASSERT_EQ(::bind(bound.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::chown(path.c_str(), 7, 8), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0622), 0);
  const std::string odd = "/\xff\xfe odd \xc3\xa9";
  write_text(from_ + odd, "odd");
  const std::string long_name = "/" + std::string(200, 'n');
  write_text(from_ + long_name, "long");
  carry();
  const auto socket = stat_of(to_ + "/sock");
  EXPECT_TRUE(S_ISSOCK(socket.st_mode));
  EXPECT_EQ(socket.st_mode & 07777U, 0622U);
  EXPECT_EQ(socket.st_uid, 7U);
  EXPECT_EQ(read_text(to_ + odd), "odd");
  EXPECT_EQ(read_text(to_ + long_name), "long");
}

TEST_F(Layer, RefusesACutStream) {
  write_text(from_ + "/f", std::string(300000, 'x'));
  const std::string tar = dir_ / "layer.tar";
  const UniqueFd fd(::open(tar.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const auto packed = pack_layer(from_, fd.get());
  ASSERT_TRUE(packed.has_value()) << packed.error().message();
  for (const off_t size : {off_t{0}, off_t{100}, off_t{200000}}) {
    ASSERT_EQ(::ftruncate(fd.get(), size), 0);
    ::lseek(fd.get(), 0, SEEK_SET);
    const auto unpacked = unpack_layer(fd.get(), to_);
    EXPECT_FALSE(unpacked.has_value()) << "cut to " << size;
    ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
    ::lseek(fd.get(), 0, SEEK_SET);
    ASSERT_TRUE(pack_layer(from_, fd.get()).has_value());
  }
}

TEST_F(Layer, NeverWritesThroughALinkOfTheStream) {
  // A stream with a link to the outside and then a file "behind" it, as only an attacker makes it.
  ASSERT_EQ(::mkdir((from_ + "/link").c_str(), 0755), 0);
  write_text(from_ + "/link/victim", "evil");
  const std::string outside = dir_ / "outside";
  ASSERT_EQ(::mkdir(outside.c_str(), 0755), 0);
  ASSERT_EQ(::symlink(outside.c_str(), (to_ + "/link").c_str()), 0);
  const std::string tar = dir_ / "layer.tar";
  const UniqueFd fd(::open(tar.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(pack_layer(from_, fd.get()).has_value());
  ::lseek(fd.get(), 0, SEEK_SET);
  static_cast<void>(unpack_layer(fd.get(), to_));
  EXPECT_NE(::access((outside + "/victim").c_str(), F_OK), 0);
}

TEST_F(Layer, SwapIsTakenBackUnlessKept) {
  write_text(from_ + "/new", "new");
  write_text(to_ + "/old", "old");
  const std::string tar = dir_ / "layer.tar";
  const UniqueFd fd(::open(tar.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(pack_layer(from_, fd.get()).has_value());
  for (const bool keep : {false, true}) {
    ::lseek(fd.get(), 0, SEEK_SET);
    {
      auto swap = LayerSwap::prepare(fd.get(), to_);
      ASSERT_TRUE(swap.has_value()) << swap.error().message();
      EXPECT_EQ(read_text(to_ + "/old"), "old");
      ASSERT_TRUE(swap->swap().has_value());
      EXPECT_EQ(read_text(to_ + "/new"), "new");
      if (keep) {
        swap->keep();
      }
    }
    EXPECT_EQ(read_text(to_ + "/old"), keep ? "" : "old");
    EXPECT_EQ(read_text(to_ + "/new"), keep ? "new" : "");
  }
  // Nothing is left beside it.
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
    ++count;
  }
  EXPECT_EQ(count, 3U);
}

TEST_F(Layer, SwapOfACorruptStreamLeavesTheLayerAlone) {
  write_text(to_ + "/old", "old");
  write_text(dir_ / "bad.tar", "this is no tar");
  const UniqueFd fd(::open((dir_ / "bad.tar").c_str(), O_RDONLY | O_CLOEXEC));
  const auto swap = LayerSwap::prepare(fd.get(), to_);
  ASSERT_FALSE(swap.has_value());
  EXPECT_EQ(swap.error().kind, Kind::corrupt);
  EXPECT_EQ(read_text(to_ + "/old"), "old");
}

}  // namespace
}  // namespace ferry::container
