#include "container/layer_delta.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/unique_fd.h"
#include "container/layer.h"
#include "container/temp_directory.h"

namespace ferry::container {
namespace {

LayerFile file(std::uint64_t ino, std::int64_t ctime_ns = 1) {
  return {.ino = ino,
          .size = 10,
          .ctime_ns = ctime_ns,
          .mode = S_IFREG | 0644,
          .links = 1,
          .whiteout = false,
          .opaque = false};
}
LayerFile folder(std::uint64_t ino, bool opaque = false) {
  return {
      .ino = ino, .size = 0, .ctime_ns = 1, .mode = S_IFDIR | 0755, .links = 2, .whiteout = false, .opaque = opaque};
}
LayerFile whiteout(std::uint64_t ino) {
  return {.ino = ino, .size = 0, .ctime_ns = 1, .mode = S_IFCHR, .links = 1, .whiteout = true, .opaque = false};
}
using Paths = std::vector<std::string>;
// Far later than any stamp, so that only what differs counts.
constexpr std::int64_t kLater = 1'000'000'000'000;

LayerDelta compare(std::map<std::string, LayerFile> before, std::map<std::string, LayerFile> now,
                   const std::set<std::string>& mapped = {}) {
  return compare_layers({.files = std::move(before), .begun_ns = kLater}, {.files = std::move(now), .begun_ns = kLater},
                        mapped);
}

TEST(LayerDelta, IsEmptyWhenNothingChanged) {
  const std::map<std::string, LayerFile> same{{"a", file(1)}, {"d", folder(2)}, {"d/b", file(3)}, {"w", whiteout(4)}};
  EXPECT_TRUE(compare(same, same).empty());
}

TEST(LayerDelta, SendsWhatIsNewOrStamped) {
  EXPECT_EQ(compare({{"a", file(1)}}, {{"a", file(1, 2)}, {"b", file(2)}}).changed, (Paths{"a", "b"}));
}

TEST(LayerDelta, SendsMappedFilesWithoutAStamp) {
  EXPECT_EQ(compare({{"a", file(1)}, {"b", file(2)}}, {{"a", file(1)}, {"b", file(2)}}, {"b", "c"}).changed,
            (Paths{"b"}));
}

TEST(LayerDelta, RemovesOnlyTheTopOfATree) {
  EXPECT_EQ(compare({{"d", folder(1)}, {"d/a", file(2)}, {"dx", file(3)}}, {{"dx", file(3)}}).removed, (Paths{"d"}));
}

TEST(LayerDelta, TakesARenamedFileForARemovedAndANewOne) {
  const auto delta = compare({{"old", file(1)}}, {{"new", file(1, 2)}});
  EXPECT_EQ(delta.removed, (Paths{"old"}));
  EXPECT_EQ(delta.changed, (Paths{"new"}));
}

TEST(LayerDelta, ReplacesAFolderByAFile) {
  const auto delta = compare({{"d", folder(1)}, {"d/a", file(2)}}, {{"d", file(3)}});
  EXPECT_EQ(delta.removed, (Paths{"d"}));
  EXPECT_EQ(delta.changed, (Paths{"d"}));
}

TEST(LayerDelta, SendsEverythingBelowAReplacedFolder) {
  const auto delta = compare({{"d", folder(1)}, {"d/a", file(2)}}, {{"d", folder(9)}, {"d/a", file(2)}});
  EXPECT_EQ(delta.removed, (Paths{"d"}));
  EXPECT_EQ(delta.changed, (Paths{"d", "d/a"}));
}

TEST(LayerDelta, RemovesWhatANewWhiteoutHides) {
  EXPECT_EQ(compare({}, {{"etc/group", whiteout(1)}}).removed, (Paths{"etc/group"}));
  EXPECT_EQ(compare({{"a", file(1)}}, {{"a", whiteout(2)}}).removed, (Paths{"a"}));
}

TEST(LayerDelta, RemovesWhatANewOpaqueFolderHides) {
  const auto delta = compare({}, {{"etc", folder(1, true)}});
  EXPECT_EQ(delta.removed, (Paths{"etc"}));
  EXPECT_EQ(delta.changed, (Paths{"etc"}));
}

TEST(LayerDelta, SendsWhatWasStampedShortlyBeforeTheFirstLook) {
  const LayerLook look{.files = {{"a", file(1, kLater - 5)}}, .begun_ns = kLater};
  EXPECT_EQ(compare_layers(look, look, {}).changed, (Paths{"a"}));
}

TEST(LayerLook, SeesFilesAndFolders) {
  const TempDirectory directory;
  std::filesystem::create_directories(directory / "d/e");
  write_text(directory / "d/e/f", "hello");
  const auto look = look_at_layer(directory.path());
  ASSERT_TRUE(look);
  ASSERT_EQ(look->files.size(), 3U);
  EXPECT_EQ(look->files.at("d/e/f").size, 5);
}

TEST(RemovePaths, StaysBelowTheRoot) {
  const TempDirectory outside;
  write_text(outside / "kept", "x");
  const TempDirectory root;
  std::filesystem::create_symlink(outside.path(), root / "link");
  std::filesystem::create_directories(root / "d/e");
  write_text(root / "d/e/f", "x");
  EXPECT_FALSE(remove_paths(root.path(), {"link/kept"}));
  EXPECT_FALSE(remove_paths(root.path(), {".."}));
  EXPECT_FALSE(
      remove_paths(root.path(), {"../" + std::filesystem::path(outside.path()).filename().string() + "/kept"}));
  EXPECT_TRUE(std::filesystem::exists(outside / "kept"));
  ASSERT_TRUE(remove_paths(root.path(), {"d", "gone/away", "link"}));
  EXPECT_TRUE(std::filesystem::is_empty(root.path()));
  EXPECT_TRUE(std::filesystem::exists(outside / "kept"));
}

TEST(PackLayerEntries, BringsTheChosenAndToleratesWhatVanished) {
  const TempDirectory from;
  const TempDirectory to;
  write_text(from / "a", "first");
  write_text(from / "b", "second");
  std::filesystem::create_hard_link(from / "a", from / "c");
  const UniqueFd tar(::open((to / "tar").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  EXPECT_FALSE(pack_layer_entries(from.path(), {".", "vanished"}, {}, tar.get()));
  ASSERT_EQ(::ftruncate(tar.get(), 0), 0);
  ::lseek(tar.get(), 0, SEEK_SET);
  ASSERT_TRUE(pack_layer_entries(from.path(), {".", "vanished", "a", "c"}, {.may_change = true, .for_mounted = false},
                                 tar.get()));
  ::lseek(tar.get(), 0, SEEK_SET);
  std::filesystem::create_directory(to / "out");
  ASSERT_TRUE(unpack_layer(tar.get(), to / "out"));
  EXPECT_EQ(read_text(to / "out/a"), "first");
  EXPECT_EQ(std::filesystem::hard_link_count(to / "out/a"), 2U);
  EXPECT_FALSE(std::filesystem::exists(to / "out/b"));
}

TEST(PackLayerEntries, GivesTimesToDirectoriesThatAreThereAlready) {
  const TempDirectory from;
  const TempDirectory to;
  std::filesystem::create_directory(from / "d");
  std::filesystem::create_directory(to / "d");
  write_text(from / "d/a", "x");
  const UniqueFd tar(::open((from / "tar").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(pack_layer_entries(from.path(), {".", "d", "d/a"}, {}, tar.get()));
  ::lseek(tar.get(), 0, SEEK_SET);
  ASSERT_TRUE(unpack_layer(tar.get(), to.path()));
  EXPECT_EQ(std::filesystem::last_write_time(from / "d"), std::filesystem::last_write_time(to / "d"));
  EXPECT_EQ(std::filesystem::last_write_time(from.path()), std::filesystem::last_write_time(to.path()));
}

}  // namespace
}  // namespace ferry::container
