// A sender and a receiver of pages, against each other and against peers that break the rules.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "base/unique_fd.h"
#include "image/proto/mm.pb.h"
#include "lazy/set_receiver.h"
#include "lazy/set_sender.h"
#include "sys/file.h"

namespace ferry::lazy {
namespace {

using image::Name;
using image::Type;
using testing::HasSubstr;

class PageServer : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/ferry-pages-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
    directory_ = UniqueFd(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    ours_ = UniqueFd(ends[0]);
    theirs_ = UniqueFd(ends[1]);
    server_ = std::thread([this] {
      SetReceiver receiver(directory_.get());
      served_ = receiver.serve(theirs_.get());
      theirs_.reset();
    });
  }
  void TearDown() override {
    (void)end();
    std::filesystem::remove_all(path_);
  }
  Result<void> end() {
    if (server_.joinable()) {
      ours_.reset();
      server_.join();
    }
    return served_;
  }
  std::string text(const std::string& file) { return sys::read_file_at(directory_.get(), file).value_or(""); }
  static std::vector<std::byte> pages(std::size_t count, char with) {
    return std::vector<std::byte>(count * image::kPageSize, static_cast<std::byte>(with));
  }

  std::filesystem::path path_;
  UniqueFd directory_, ours_, theirs_;
  std::thread server_;
  Result<void> served_;
};

TEST_F(PageServer, KeepsWhatASenderSends) {
  std::filesystem::create_directory(path_ / "parent");
  std::ofstream(path_ / "parent" / "pagemap-7.img");
  SetSender sender(UniqueFd(::dup(ours_.get())), false);
  auto sink = sender.open({Type::pagemap, 7});
  ASSERT_TRUE(sink.has_value()) << sink.error().message();
  (*sink)->describe(0x10000, 2, image::kPresent | image::kLazy);
  (*sink)->describe(0x12000, 3, image::kInParent);
  (*sink)->describe(0x20000, 3, image::kPresent);
  ASSERT_TRUE((*sink)->append(pages(4, 'a')).has_value());  // ends within a range
  ASSERT_TRUE((*sink)->append(pages(1, 'b')).has_value());
  (*sink)->describe(0x30000, 1, image::kLazy);
  ASSERT_TRUE((*sink)->finish().has_value());
  sink = sender.open({Type::pagemap_shmem, 9});
  ASSERT_TRUE(sink.has_value());
  ASSERT_TRUE((*sink)->finish().has_value());
  const auto closed = sender.close();
  ASSERT_TRUE(closed.has_value()) << closed.error().message();
  ASSERT_TRUE(end().has_value()) << served_.error().message();

  image::Set set;
  ASSERT_TRUE(image::decode_file(set, {Type::pagemap, 7}, text("pagemap-7.img"), 2).has_value());
  const auto entries = set.list<pb::PagemapEntry>({Type::pagemap, 7});
  ASSERT_EQ(entries.size(), 4U);
  EXPECT_EQ(entries[0]->flags(), 6U);
  EXPECT_EQ(entries[1]->flags(), 1U);
  EXPECT_EQ(entries[1]->nr_pages(), 3U);
  EXPECT_EQ(entries[2]->nr_pages(), 3U);
  EXPECT_EQ(entries[3]->flags(), 2U);
  const std::string content = text("pages-65537.img");
  EXPECT_EQ(content, std::string(4 * 4096, 'a') + std::string(4096, 'b'));
  EXPECT_TRUE(std::filesystem::exists(path_ / "pagemap-shmem-9.img"));
}

TEST_F(PageServer, IsNotSentToWhatItHasNoParentFor) {
  SetSender sender(UniqueFd(::dup(ours_.get())), false);
  auto sink = sender.open({Type::pagemap, 7});
  ASSERT_TRUE(sink.has_value());
  (*sink)->describe(0x12000, 3, image::kInParent);
  const auto refused = (*sink)->finish();
  ASSERT_FALSE(refused.has_value());
  EXPECT_THAT(refused.error().message(), HasSubstr("--prev-images-dir"));
}

TEST_F(PageServer, LeavesNoPagemapOfASenderThatBreaksOff) {
  SetSender sender(UniqueFd(::dup(ours_.get())), false);
  {
    auto sink = sender.open({Type::pagemap, 7});
    ASSERT_TRUE(sink.has_value());
    (*sink)->describe(0x10000, 2, image::kPresent);
    ASSERT_TRUE((*sink)->append(pages(2, 'a')).has_value());
  }
  ::shutdown(ours_.get(), SHUT_RDWR);
  const auto served = end();
  ASSERT_FALSE(served.has_value());
  EXPECT_EQ(served.error().kind, Kind::corrupt);
  EXPECT_FALSE(std::filesystem::exists(path_ / "pagemap-7.img"));
}

class HostileSender : public PageServer, public testing::WithParamInterface<Command> {};

TEST_P(HostileSender, IsRefused) {
  ASSERT_TRUE(send(ours_.get(), GetParam()).has_value());
  const auto served = end();
  ASSERT_FALSE(served.has_value());
  EXPECT_EQ(served.error().kind, Kind::corrupt) << served.error().message();
}

constexpr std::uint16_t kAddF = 6;
INSTANTIATE_TEST_SUITE_P(
    All, HostileSender,
    testing::Values(Command{0, 0, 0, 0, 0}, Command{99, 0, 0, 0, 42 << 8 | 1}, Command{kAddF, 4, 1, 0x1000, 0},
                    Command{kAddF, 4, 1, 0x1001, 42 << 8 | 1}, Command{kAddF, 4, 0, 0x1000, 42 << 8 | 1},
                    Command{kAddF, 4, 1ULL << 60, 0x1000, 42 << 8 | 1}, Command{kAddF, 5, 1, 0x1000, 42 << 8 | 1},
                    Command{kAddF, 8, 1, 0x1000, 42 << 8 | 1}, Command{7, 0, 1, 0x1000, 42},
                    Command{kAddF, 1, 1ULL << 20, ~0ULL << 12, 42 << 8 | 1}, Command{4, 0, 0, 0, 3}));

}  // namespace
}  // namespace ferry::lazy
