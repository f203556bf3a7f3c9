#include "image/page_store.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/fixture.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/mm.pb.h"

namespace ferry::image {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryDirectory;

constexpr Name kMap{Type::pagemap, 1};

struct Written {
  std::uint64_t vaddr;
  std::uint64_t pages;
  std::uint32_t flags;
  char fill = 0;
};

// A set with one pagemap, saved with its pages into a directory.
Set write_set(const std::filesystem::path& path, const std::vector<Written>& ranges) {
  Set set;
  pb::InventoryEntry inventory;
  inventory.set_img_version(2);
  set.add({Type::inventory, 0}, std::move(inventory));
  const auto directory = testing::open_directory(path);
  auto writer = PageWriter::create(set, kMap, directory.get(), 1);
  EXPECT_TRUE(writer);
  for (const auto& range : ranges) {
    writer->describe(range.vaddr, range.pages, range.flags);
    if ((range.flags & kPresent) != 0) {
      const std::vector<std::byte> pages(range.pages * kPageSize, static_cast<std::byte>(range.fill));
      EXPECT_TRUE(writer->append(pages));
    }
  }
  EXPECT_TRUE(writer->finish());
  EXPECT_TRUE(save(set, directory.get()));
  return set;
}

// The first byte of every page of the extents, in order.
std::string first_bytes(const std::vector<Extent>& extents) {
  std::string out;
  for (const Extent& extent : extents) {
    for (std::uint64_t i = 0; i < extent.page_count; ++i) {
      char c = '-';
      if (extent.fd >= 0) {
        EXPECT_EQ(::pread(extent.fd, &c, 1, static_cast<off_t>(extent.offset + i * kPageSize)), 1);
      }
      out.push_back(c);
    }
  }
  return out;
}

TEST(PageWriter, MergesRangesThatContinue) {
  const TemporaryDirectory directory;
  const auto set = write_set(directory.path(), {{0x1000, 2, kPresent, 'a'},
                                                {0x3000, 1, kPresent, 'b'},
                                                {0x4000, 1, kPresent | kLazy, 'c'},
                                                {0x8000, 1, kPresent | kLazy, 'd'}});
  const auto entries = set.list<pb::PagemapEntry>(kMap);
  ASSERT_EQ(entries.size(), 3U);
  EXPECT_EQ(entries[0]->nr_pages(), 3U);
  EXPECT_EQ((*set.one<pb::PagemapHead>(kMap))->pages_id(), 1U);

  auto store = PageStore::open(set, directory.open().get());
  ASSERT_TRUE(store);
  const auto extents = store->extents(kMap);
  ASSERT_TRUE(extents) << extents.error().message();
  ASSERT_EQ(extents->size(), 2U);
  EXPECT_EQ((*extents)[0].vaddr, 0x1000U);
  EXPECT_EQ((*extents)[1].vaddr, 0x8000U);
  EXPECT_EQ(first_bytes(*extents), "aabcd");
}

TEST(PageWriter, NoticesPagesThatWereNotWritten) {
  Set set;
  const TemporaryDirectory directory;
  auto writer = PageWriter::create(set, kMap, directory.open().get(), 1);
  ASSERT_TRUE(writer);
  writer->describe(0x1000, 2, kPresent);
  const std::vector<std::byte> one(kPageSize);
  ASSERT_TRUE(writer->append(one));
  EXPECT_FALSE(writer->finish());
  ASSERT_TRUE(writer->append(one));
  EXPECT_TRUE(writer->finish());
}

TEST(PageStore, FollowsParentsForEveryPage) {
  const TemporaryDirectory directory;
  for (const char* name : {"1", "2", "3"}) {
    std::filesystem::create_directory(directory.path() / name);
  }
  std::filesystem::create_symlink("../1", directory.path() / "2" / "parent");
  std::filesystem::create_symlink("../2", directory.path() / "3" / "parent");
  write_set(directory.path() / "1", {{0x1000, 2, kPresent, 'a'}, {0x3000, 2, kPresent, 'b'}});
  write_set(directory.path() / "2", {{0x1000, 1, kInParent}, {0x2000, 1, kPresent, 'c'}, {0x3000, 2, kInParent}});
  const auto set =
      write_set(directory.path() / "3", {{0x1000, 3, kInParent}, {0x4000, 1, kPresent, 'd'}, {0x9000, 1, kLazy}});
  auto store = PageStore::open(set, testing::open_directory(directory.path() / "3").get());
  ASSERT_TRUE(store) << store.error().message();
  const auto extents = store->extents(kMap);
  ASSERT_TRUE(extents) << extents.error().message();
  EXPECT_EQ(first_bytes(*extents), "acbd-");
}

TEST(PageStore, RefusesWhatAParentDoesNotHave) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory.path() / "old");
  std::filesystem::create_directory(directory.path() / "new");
  write_set(directory.path() / "old", {{0x1000, 1, kPresent, 'a'}, {0x3000, 1, kPresent, 'b'}});
  const auto set = write_set(directory.path() / "new", {{0x1000, 3, kInParent}});
  const auto here = testing::open_directory(directory.path() / "new");

  auto alone = PageStore::open(set, here.get())->extents(kMap);
  ASSERT_FALSE(alone);
  EXPECT_THAT(alone.error().message(), HasSubstr("parent/pagemap-1.img"));

  std::filesystem::create_symlink("../old", directory.path() / "new" / "parent");
  auto hole = PageStore::open(set, here.get())->extents(kMap);
  ASSERT_FALSE(hole);
  EXPECT_THAT(hole.error().message(), HasSubstr("0x2000"));
}

TEST(PageStore, RefusesAChainThatComesBackToItself) {
  const TemporaryDirectory directory;
  const auto set = write_set(directory.path(), {});
  std::filesystem::create_symlink(".", directory.path() / "parent");
  const auto store = PageStore::open(set, directory.open().get());
  ASSERT_FALSE(store);
  EXPECT_THAT(store.error().message(), HasSubstr("loop"));
}

TEST(PageStore, RefusesAPagesFileThatIsMissingOrShort) {
  const TemporaryDirectory directory;
  const auto set = write_set(directory.path(), {{0x1000, 2, kPresent, 'a'}});
  std::filesystem::resize_file(directory.path() / "pages-1.img", 2 * kPageSize - 1);
  auto cut = PageStore::open(set, directory.open().get())->extents(kMap);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().kind, Kind::corrupt);
  EXPECT_THAT(cut.error().message(), HasSubstr("pages-1.img"));
  std::filesystem::remove(directory.path() / "pages-1.img");
  auto missing = PageStore::open(set, directory.open().get())->extents(kMap);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind, Kind::corrupt);
}

Result<std::vector<Extent>> extents_of(const std::vector<pb::PagemapEntry>& entries, std::uint64_t file_pages) {
  const TemporaryDirectory directory;
  Set set;
  pb::PagemapHead head;
  head.set_pages_id(1);
  set.add(kMap, std::move(head));
  for (const auto& entry : entries) {
    set.add(kMap, entry);
  }
  testing::spill(directory.path() / "pages-1.img", std::string(file_pages * kPageSize, 'x'));
  return PageStore::open(set, directory.open().get())->extents(kMap);
}

pb::PagemapEntry entry(std::uint64_t vaddr, std::uint64_t pages, std::uint32_t flags) {
  pb::PagemapEntry out;
  out.set_vaddr(vaddr);
  out.set_compat_nr_pages(0);
  out.set_nr_pages(pages);
  out.set_flags(flags);
  return out;
}

TEST(PageStore, RefusesRangesThatAreNone) {
  for (const auto& bad :
       {entry(0x1001, 1, kPresent), entry(0x1000, 0, kPresent), entry(0x1000, UINT64_MAX, kPresent),
        entry(UINT64_MAX - 0xfff, 2, kPresent), entry(0x1000, 1, 64), entry(0x1000, 1, kPresent | kInParent)}) {
    const auto extents = extents_of({bad}, 4);
    ASSERT_FALSE(extents) << bad.ShortDebugString();
    EXPECT_EQ(extents.error().kind, Kind::corrupt);
  }
  EXPECT_FALSE(extents_of({entry(0x1000, 2, kPresent), entry(0x2000, 1, kPresent)}, 4));
}

TEST(PageStore, ReadsRangesFromBeforeThereWereFlags) {
  pb::PagemapEntry old;
  old.set_vaddr(0x1000);
  old.set_compat_nr_pages(2);
  const auto extents = extents_of({old}, 2);
  ASSERT_TRUE(extents);
  ASSERT_EQ(extents->size(), 1U);
  EXPECT_EQ(extents->front().page_count, 2U);
}

TEST(PageStore, SortsByAddressAndKeepsFileOrder) {
  const auto extents = extents_of({entry(0x5000, 1, kPresent), entry(0x1000, 1, kPresent)}, 2);
  ASSERT_TRUE(extents);
  ASSERT_EQ(extents->size(), 2U);
  EXPECT_EQ((*extents)[0].vaddr, 0x1000U);
  EXPECT_EQ((*extents)[0].offset, kPageSize);
}

TEST(PageStore, FindsEveryPageOfCriusSets) {
  for (const char* name : testing::kFixtures) {
    const auto set = testing::load_fixture(name);
    const auto directory = testing::open_directory(testing::fixture(name));
    auto store = PageStore::open(set, directory.get());
    ASSERT_TRUE(store);
    for (const Type type : {Type::pagemap, Type::pagemap_shmem}) {
      for (const Name map : set.names(type)) {
        const auto extents = store->extents(map);
        ASSERT_TRUE(extents) << extents.error().message();
        std::uint64_t pages = 0;
        for (const auto& extent : *extents) {
          pages += extent.page_count;
        }
        const auto file = testing::fixture(name) / pages_file_name((*set.one<pb::PagemapHead>(map))->pages_id());
        EXPECT_EQ(pages * kPageSize, std::filesystem::file_size(file)) << file;
      }
    }
  }
}

TEST(Reservation, TakesPagesDirectlyAndGivesBackWhatIsNotNeeded) {
  const TemporaryDirectory temporary;
  const UniqueFd directory = testing::open_directory(temporary.path());
  Set set;
  auto room = Reservation::make(directory.get(), 1, 8 * kPageSize);
  ASSERT_TRUE(room);
  ASSERT_EQ(room->bytes().size(), 8 * kPageSize);
  {
    auto writer = PageWriter::create(set, {Type::pagemap, 7}, *room, 1);
    writer.describe(0x10000, 3, kPresent);
    const auto place = writer.claim(2 * kPageSize);
    ASSERT_EQ(place.size(), 2 * kPageSize);
    std::fill(place.begin(), place.end(), std::byte{1});
    ASSERT_TRUE(writer.append(std::vector<std::byte>(kPageSize, std::byte{2})));
    ASSERT_TRUE(writer.finish());
  }
  struct stat st {};
  ASSERT_EQ(::fstatat(directory.get(), "pages-1.img", &st, 0), 0);
  EXPECT_EQ(st.st_size, static_cast<off_t>(3 * kPageSize));
}

TEST(Reservation, IsContinuedInTheFileWhenItIsTooSmall) {
  const TemporaryDirectory temporary;
  const UniqueFd directory = testing::open_directory(temporary.path());
  Set set;
  auto room = Reservation::make(directory.get(), 1, kPageSize);
  ASSERT_TRUE(room);
  auto writer = PageWriter::create(set, {Type::pagemap, 7}, *room, 1);
  EXPECT_TRUE(writer.claim(3 * kPageSize).empty());
  writer.describe(0x10000, 3, kPresent);
  std::vector<std::byte> pages(3 * kPageSize, std::byte{5});
  pages.back() = std::byte{9};
  ASSERT_TRUE(writer.append(pages));
  ASSERT_TRUE(writer.finish());
  const UniqueFd file(::openat(directory.get(), "pages-1.img", O_RDONLY | O_CLOEXEC));
  std::vector<std::byte> back(3 * kPageSize);
  ASSERT_EQ(::read(file.get(), back.data(), back.size()), static_cast<ssize_t>(back.size()));
  EXPECT_EQ(back, pages);
}

}  // namespace
}  // namespace ferry::image
