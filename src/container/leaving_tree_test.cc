#include "container/leaving_tree.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "base/unique_fd.h"
#include "container/temp_directory.h"

namespace ferry::container {
namespace {

namespace fs = std::filesystem;
using Paths = std::vector<std::string>;
using Names = std::set<std::string>;

// A tree that was sent a while ago: what is stamped in the same tick as the look counts as changed.
class LeavingTreeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(directory_ / "d/e");
    write_text(directory_ / "a", "1");
    write_text(directory_ / "d/b", "2");
    write_text(directory_ / "d/e/c", "3");
    write_text(directory_ / "large", std::string(2 << 20, 'x'));
    const UniqueFd out(::open((spare_ / "tar").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(tree_.pack_all(out.get()));
    settle(std::nullopt);
  }
  // Until nothing is stamped as late as the last look: its clock goes in ticks of some milliseconds.
  void settle(const std::optional<Names>& named) {
    for (int i = 0; i < 1000; ++i) {
      const auto changes = tree_.changes(named, {});
      ASSERT_TRUE(changes);
      if (changes->packed.empty() && changes->patched.empty()) {
        return;
      }
      ::usleep(1000);
    }
    FAIL() << "the tree does not come to rest";
  }
  TreeChanges look(const std::optional<Names>& named, const Names& mapped = {}) {
    auto changes = tree_.changes(named, mapped);
    EXPECT_TRUE(changes);
    return *changes;
  }
  TempDirectory directory_;
  TempDirectory spare_;
  LeavingTree tree_ = LeavingTree::plain(directory_.path());
};

TEST_F(LeavingTreeTest, FindsByNameWhatItFindsByLooking) {
  write_text(directory_ / "a", "changed");
  fs::remove(directory_ / "d/b");
  fs::rename(directory_ / "d/e", directory_ / "f");
  const LeavingTree before = tree_;
  const TreeChanges by_name = look(Names{"a", "d/b", "d/e", "f"});
  tree_ = before;
  const TreeChanges by_looking = look(std::nullopt);
  EXPECT_EQ(by_name.removed, (Paths{"d/b", "d/e"}));
  EXPECT_EQ(by_name.removed, by_looking.removed);
  // Directories whose times have changed are sent anyway.
  EXPECT_EQ(by_name.packed, (Paths{"a", "d", "f", "f/c"}));
  EXPECT_EQ(by_name.packed, by_looking.packed);
  EXPECT_TRUE(by_name.itself);
  EXPECT_TRUE(look(std::nullopt).removed.empty());
}

// It was away when it was looked at, and has come back before what is below it was.
TEST_F(LeavingTreeTest, TakesADirectoryThatCameBackAsAWhole) {
  fs::rename(directory_ / "d", directory_ / "away");
  EXPECT_EQ(look(Names{"d"}).removed, (Paths{"d"}));
  fs::rename(directory_ / "away", directory_ / "d");
  EXPECT_EQ(look(Names{"d/b"}).packed, (Paths{"d", "d/b", "d/e", "d/e/c"}));
  fs::rename(directory_ / "d", directory_ / "away");
  EXPECT_EQ(look(Names{"away", "d"}).removed, (Paths{"d"})) << "or it would stay at the destination";
}

// Nothing that is below a directory is stamped when that is renamed.
TEST_F(LeavingTreeTest, TakesWhatWasAwayWhileItWasPacked) {
  write_text(directory_ / "d/b", "changed");
  write_text(directory_ / "a", "changed");
  const TreeChanges changes = look(Names{"a", "d/b"});
  fs::rename(directory_ / "d", directory_ / "away");
  const UniqueFd out(::open((spare_ / "changes").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(tree_.pack(changes, true, out.get()));
  fs::rename(directory_ / "away", directory_ / "d");
  settle(Names{"a"});
  EXPECT_EQ(look(Names{"away", "d"}).packed, (Paths{"d", "d/b", "d/e", "d/e/c"}));
}

TEST_F(LeavingTreeTest, TakesWhatHadAnotherInItsPlaceWhileItWasPacked) {
  fs::create_directory(directory_ / "other");
  write_text(directory_ / "other/b", "of the other");
  settle(std::nullopt);
  write_text(directory_ / "d/b", "changed");
  write_text(directory_ / "a", "changed");
  const TreeChanges changes = look(Names{"a", "d/b"});
  const auto swap = [&] {
    fs::rename(directory_ / "d", directory_ / "away");
    fs::rename(directory_ / "other", directory_ / "d");
    fs::rename(directory_ / "away", directory_ / "other");
  };
  swap();
  const UniqueFd out(::open((spare_ / "changes").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(tree_.pack(changes, true, out.get()));
  swap();
  settle(Names{"a"});
  const Paths packed = look(Names{"away", "d", "other"}).packed;
  EXPECT_THAT(packed, ::testing::Contains("d/b"));
  EXPECT_THAT(packed, ::testing::Not(::testing::Contains("other/b"))) << "it is there already";
}

TEST_F(LeavingTreeTest, LooksAtNothingElse) {
  write_text(directory_ / "a", "changed");
  const TreeChanges changes = look(Names{"d/b"});
  EXPECT_TRUE(changes.packed.empty());
  EXPECT_TRUE(look(Names{}).packed.empty());
  EXPECT_EQ(look(Names{"a"}).packed, (Paths{"a"}));
}

TEST_F(LeavingTreeTest, SendsTheParentsWithAFileWhoseReplacementTouchesThem) {
  write_text(directory_ / "d/e/c", "changed");
  EXPECT_EQ(look(Names{"d/e/c"}).packed, (Paths{"d", "d/e", "d/e/c"}));
}

TEST_F(LeavingTreeTest, PatchesALargeFileThatWasThere) {
  write_text(directory_ / "large", std::string(3 << 20, 'y'));
  EXPECT_EQ(look(Names{"large"}).patched, (Paths{"large"}));
  EXPECT_EQ(look(Names{}, {"large"}).patched, (Paths{"large"}));
  fs::remove(directory_ / "large");
  EXPECT_EQ(look(Names{"large"}).removed, (Paths{"large"}));
  write_text(directory_ / "large", std::string(3 << 20, 'y'));
  EXPECT_EQ(look(Names{"large"}).packed, (Paths{"large"}));
}

TEST_F(LeavingTreeTest, SendsAllNamesOfAFile) {
  fs::create_hard_link(directory_ / "a", directory_ / "d/z");
  EXPECT_EQ(look(Names{"d/z"}).packed, (Paths{"a", "d", "d/z"}));
  write_text(directory_ / "d/z", "changed");
  EXPECT_EQ(look(Names{"d/z"}).packed, (Paths{"a", "d", "d/z"}));
}

}  // namespace
}  // namespace ferry::container
