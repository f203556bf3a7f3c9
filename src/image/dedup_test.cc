#include "image/dedup.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/fixture.h"
#include "image/page_store.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/mm.pb.h"

namespace ferry::image {
namespace {

using testing::TemporaryDirectory;

constexpr Name kMap{Type::pagemap, 1};

struct Written {
  std::uint64_t vaddr, pages;
  std::uint32_t flags;
  char fill = 0;
};

void write_set(const std::filesystem::path& path, const std::vector<Written>& ranges, std::uint32_t version = 2) {
  Set set;
  pb::InventoryEntry inventory;
  inventory.set_img_version(version);
  set.add({Type::inventory, 0}, std::move(inventory));
  const auto directory = testing::open_directory(path);
  auto writer = PageWriter::create(set, kMap, directory.get(), 1);
  ASSERT_TRUE(writer);
  for (const auto& range : ranges) {
    writer->describe(range.vaddr, range.pages, range.flags);
    if ((range.flags & kPresent) != 0) {
      ASSERT_TRUE(writer->append(std::vector<std::byte>(range.pages * kPageSize, static_cast<std::byte>(range.fill))));
    }
  }
  ASSERT_TRUE(writer->finish());
  ASSERT_TRUE(save(set, directory.get()));
}

std::int64_t bytes_in(const std::filesystem::path& file) {
  struct stat st {};
  EXPECT_EQ(::stat(file.c_str(), &st), 0);
  return st.st_blocks * 512;
}

std::string content(const std::filesystem::path& path) {
  const auto directory = testing::open_directory(path);
  const auto set = load(directory.get(), Accept::pre_dump);
  EXPECT_TRUE(set) << set.error().message();
  auto store = PageStore::open(*set, directory.get());
  const auto extents = store->extents(kMap);
  EXPECT_TRUE(extents) << extents.error().message();
  std::string out;
  for (const Extent& extent : *extents) {
    for (std::uint64_t i = 0; i < extent.page_count; ++i) {
      char c = '-';
      EXPECT_EQ(::pread(extent.fd, &c, 1, static_cast<off_t>(extent.offset + i * kPageSize)), 1);
      out.push_back(c);
    }
  }
  return out;
}

TEST(Dedup, TakesOutOfAllParentsWhatTheSetHasAnew) {
  const TemporaryDirectory top;
  const auto first = top.path() / "1";
  const auto second = top.path() / "2";
  const auto third = top.path() / "3";
  for (const auto& path : {first, second, third}) {
    std::filesystem::create_directory(path);
  }
  write_set(first, {{0x1000, 8, kPresent, 'a'}}, 0);
  write_set(second, {{0x1000, 2, kInParent}, {0x3000, 2, kPresent, 'b'}, {0x5000, 4, kInParent}}, 0);
  write_set(third,
            {{0x1000, 1, kPresent, 'c'}, {0x2000, 1, kInParent}, {0x3000, 1, kPresent, 'c'}, {0x4000, 5, kInParent}});
  std::filesystem::create_symlink("../1", second / "parent");
  std::filesystem::create_symlink("../2", third / "parent");
  ASSERT_EQ(content(third), "cacbaaaa");
  const auto first_before = bytes_in(first / "pages-1.img");
  const auto second_before = bytes_in(second / "pages-1.img");

  const auto pages = punch_parents(testing::open_directory(third).get());
  ASSERT_TRUE(pages) << pages.error().message();
  EXPECT_EQ(*pages, 2U);
  EXPECT_EQ(content(third), "cacbaaaa");
  EXPECT_EQ(bytes_in(first / "pages-1.img"), first_before - 4096);
  EXPECT_EQ(bytes_in(second / "pages-1.img"), second_before - 4096);
}

TEST(Dedup, HasNothingToDoWithoutAParent) {
  const TemporaryDirectory top;
  write_set(top.path(), {{0x1000, 1, kPresent, 'a'}});
  EXPECT_EQ(punch_parents(top.open().get()).value_or(99), 0U);
  EXPECT_EQ(content(top.path()), "a");
}

TEST(Dedup, NamesAParentThatIsDamaged) {
  const TemporaryDirectory top;
  const auto first = top.path() / "1";
  const auto second = top.path() / "2";
  std::filesystem::create_directory(first);
  std::filesystem::create_directory(second);
  write_set(first, {{0x1000, 2, kPresent, 'a'}}, 0);
  write_set(second, {{0x1000, 1, kPresent, 'b'}, {0x2000, 1, kInParent}});
  std::filesystem::create_symlink("../1", second / "parent");
  std::filesystem::resize_file(first / "pages-1.img", 4096);
  const auto pages = punch_parents(testing::open_directory(second).get());
  ASSERT_FALSE(pages);
  EXPECT_EQ(pages.error().kind, Kind::corrupt);
}

TEST(Dedup, EmptiesASetThatWasRestored) {
  const TemporaryDirectory top;
  write_set(top.path(), {{0x1000, 4, kPresent, 'a'}});
  EXPECT_EQ(punch_all(top.open().get()).value_or(0), 4U);
  EXPECT_EQ(bytes_in(top.path() / "pages-1.img"), 0);
}

}  // namespace
}  // namespace ferry::image
