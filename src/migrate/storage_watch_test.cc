#include "migrate/storage_watch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "container/temp_directory.h"

namespace ferry::migrate {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

void write(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

class StorageWatchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) {
      GTEST_SKIP() << "fanotify needs CAP_SYS_ADMIN";
    }
    fs::create_directories(first_ / "d");
    write(first_ / "d/old", "x");
    auto watch = StorageWatch::begin({{first_.path(), false}, {second_.path(), false}});
    ASSERT_TRUE(watch) << watch.error().message();
    watch_.emplace(std::move(*watch));
  }
  std::vector<Names> heard() {
    auto names = watch_->heard();
    EXPECT_TRUE(names && names->has_value());
    return names && names->has_value() ? **names : std::vector<Names>(2);
  }
  container::TempDirectory first_;
  container::TempDirectory second_;
  std::optional<StorageWatch> watch_;
};

TEST_F(StorageWatchTest, NamesWhatChangedByItsPlace) {
  write(first_ / "new", "x");
  write(second_ / "other", "x");
  write(first_ / "d/old", "y");
  const auto names = heard();
  EXPECT_TRUE(names[0].contains("new") && names[0].contains("d/old"));
  EXPECT_EQ(names[1], (Names{"other"}));
  EXPECT_EQ(heard(), std::vector<Names>(2));
}

TEST_F(StorageWatchTest, NamesBothEndsOfARename) {
  fs::rename(first_ / "d", first_ / "e");
  write(first_ / "e/old", "y");
  const auto names = heard()[0];
  EXPECT_TRUE(names.contains("d") && names.contains("e") && names.contains("e/old"));
}

TEST_F(StorageWatchTest, IsNotConfusedByADirectoryThatIsGone) {
  fs::create_directories(first_ / "short/lived");
  write(first_ / "short/lived/file", "x");
  fs::remove_all(first_ / "short");
  EXPECT_TRUE(heard()[0].contains("short"));
}

TEST_F(StorageWatchTest, NamesWhoseAttributesChanged) {
  ::chmod((first_ / "d").c_str(), 0700);
  ::chmod((first_ / "d/old").c_str(), 0600);
  const auto names = heard()[0];
  EXPECT_TRUE(names.contains("d") && names.contains("d/old"));
}

TEST_F(StorageWatchTest, SaysWhenTheQueueRanOver) {
  std::ifstream limit("/proc/sys/fs/fanotify/max_queued_events");
  int most = 0;
  ASSERT_TRUE(limit >> most);
  for (int i = 0; i <= most; ++i) {
    ASSERT_EQ(::mknod((second_ / std::to_string(i)).c_str(), S_IFREG | 0600, 0), 0);
  }
  const auto names = watch_->heard();
  ASSERT_TRUE(names);
  EXPECT_FALSE(names->has_value());
  EXPECT_EQ(heard(), std::vector<Names>(2));
}

}  // namespace
}  // namespace ferry::migrate
