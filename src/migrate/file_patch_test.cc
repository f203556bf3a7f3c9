#include "migrate/file_patch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/unique_fd.h"

namespace ferry::migrate {
namespace {

UniqueFd file_with(const std::string& content) {
  UniqueFd fd(::memfd_create("file", MFD_CLOEXEC));
  EXPECT_EQ(::pwrite(fd.get(), content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
  return fd;
}

std::string content_of(const UniqueFd& fd) {
  struct stat info {};
  EXPECT_EQ(::fstat(fd.get(), &info), 0);
  std::string out(static_cast<std::size_t>(info.st_size), '?');
  EXPECT_EQ(::pread(fd.get(), out.data(), out.size(), 0), info.st_size);
  return out;
}

// Brings `there` to the content of `here` in portions of some bytes; says how many bytes that took.
std::size_t carry(const UniqueFd& here, const UniqueFd& there, std::size_t portion) {
  auto sums = block_sums(there.get(), "there");
  EXPECT_TRUE(sums);
  std::vector<std::byte> stream;
  const auto size = make_patch(
      here.get(), *sums,
      [&](std::span<const std::byte> bytes) -> Result<void> {
        stream.insert(stream.end(), bytes.begin(), bytes.end());
        return {};
      },
      "here");
  EXPECT_TRUE(size);
  EXPECT_EQ(*sums, *block_sums(here.get(), "here"));
  Patcher patcher(there.get(), *size);
  for (std::size_t at = 0; at < stream.size(); at += portion) {
    EXPECT_TRUE(patcher.take(std::span(stream).subspan(at, std::min(portion, stream.size() - at))));
  }
  EXPECT_TRUE(patcher.finish());
  return stream.size();
}

std::string text_of(std::size_t size) {
  std::string out(size, 'a');
  for (std::size_t i = 0; i < size; ++i) {
    out[i] = static_cast<char>('a' + (i * 31 + i / 4096) % 26);
  }
  return out;
}

TEST(FilePatch, SendsNothingOfEqualFiles) {
  const std::string same = text_of(3 * kPatchBlock + 17);
  EXPECT_EQ(carry(file_with(same), file_with(same), 1000), 0U);
}

TEST(FilePatch, SendsTheBlocksThatDiffer) {
  const std::string before = text_of(10 * kPatchBlock + 100);
  std::string after = before;
  after[3 * kPatchBlock + 5] = '!';
  after[10 * kPatchBlock + 99] = '!';
  const UniqueFd there = file_with(before);
  EXPECT_EQ(carry(file_with(after), there, 7001), 2 * 16 + kPatchBlock + 100);
  EXPECT_EQ(content_of(there), after);
}

TEST(FilePatch, FollowsGrowingAndShrinking) {
  const std::string longer = text_of(4 * kPatchBlock + 5);
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, kPatchBlock, kPatchBlock + 1, 3 * kPatchBlock}) {
    const UniqueFd grown = file_with(longer.substr(0, size));
    carry(file_with(longer), grown, 333);
    EXPECT_EQ(content_of(grown), longer);
    const UniqueFd cut = file_with(longer);
    carry(file_with(longer.substr(0, size)), cut, 333);
    EXPECT_EQ(content_of(cut), longer.substr(0, size));
  }
}

TEST(FilePatch, MakesHolesWhereZerosAre) {
  const std::string before = text_of(64 * kPatchBlock);
  const UniqueFd here(::memfd_create("here", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(here.get(), 64 * kPatchBlock), 0);
  ASSERT_EQ(::pwrite(here.get(), "x", 1, 40 * kPatchBlock), 1);
  const UniqueFd there = file_with(before);
  EXPECT_EQ(carry(here, there, 4096), 64 * 16 + kPatchBlock);
  EXPECT_EQ(content_of(there), content_of(here));
  struct stat info {};
  ASSERT_EQ(::fstat(there.get(), &info), 0);
  EXPECT_LE(info.st_blocks * 512, static_cast<blkcnt_t>(2 * kPatchBlock));
}

TEST(FilePatch, RefusesWhatIsNoPatch) {
  const UniqueFd there = file_with("x");
  const std::vector<std::byte> nonsense(16, std::byte{0xff});
  EXPECT_FALSE(Patcher(there.get(), 1).take(nonsense));
  Patcher cut(there.get(), 1);
  ASSERT_TRUE(cut.take(std::span(nonsense).first(3)));
  EXPECT_FALSE(cut.finish());
  EXPECT_FALSE(decode_sums("123"));
}

}  // namespace
}  // namespace ferry::migrate
