#include "image/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "image/fixture.h"
#include "image/proto/files.pb.h"
#include "image/proto/inventory.pb.h"
#include "image/words.h"

namespace ferry::image {
namespace {

using Json = nlohmann::json;

// The other decoder breaks base64 into lines, knows neither O_PATH nor MAP_NORESERVE, and prints the
// signal mask of a thread as a decimal number.
Json as_ours(const std::string& key, Json other) {
  if (other.is_structured()) {
    for (auto& [inner, value] : other.items()) {
      value = as_ours(other.is_object() ? inner : key, value);
    }
    return other;
  }
  if (key == "blk_sigset" && other.is_number()) {
    return in_words(pb::HEX, other.get<std::uint64_t>());
  }
  if (!other.is_string()) {
    return other;
  }
  auto text = other.get<std::string>();
  if (key == "extra" || key == "data" || key == "siginfo") {
    text.erase(std::remove(text.begin(), text.end(), '\n'), text.end());
  }
  for (const auto& [number, word] : {std::pair{"| 0x200000", "| O_PATH"}, std::pair{"| 0x4000", "| MAP_NORESERVE"},
                                     std::pair{"| 0x20000", "| MAP_STACK"}}) {
    if (key == "flags" && text.ends_with(number)) {
      text.replace(text.size() - std::string(number).size(), std::string::npos, word);
    }
  }
  return text;
}

class Shown : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(CriuWrote, Shown, ::testing::ValuesIn(testing::kFixtures), [](const auto& parameter) {
  std::string name = parameter.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(Shown, EqualsWhatAnIndependentDecoderShows) {
  const auto text = show(testing::load_fixture(GetParam()));
  ASSERT_TRUE(text);
  const auto ours = Json::parse(*text);
  const auto other = Json::parse(testing::slurp(testing::fixture(GetParam()) / "decoded.json"));
  std::size_t compared = 0;
  for (const auto& [file, image] : other.items()) {
    if (file == "stats-dump" || file.starts_with("pages-")) {
      continue;  // not part of a set in memory
    }
    ASSERT_TRUE(ours.contains(file)) << file;
    if (image.contains("raw")) {
      EXPECT_TRUE(ours[file].contains("raw")) << file;
      continue;
    }
    const auto difference = Json::diff(as_ours("", image), ours[file]);
    EXPECT_TRUE(difference.empty()) << file << difference.dump(1);
    ++compared;
  }
  EXPECT_GT(compared, 10U);
}

TEST(Show, IsJsonWhateverBytesAPathHas) {
  Set set;
  pb::InventoryEntry inventory;
  inventory.set_img_version(2);
  inventory.set_dump_criu_run_id("\xff\xfe");
  set.add({Type::inventory, 0}, std::move(inventory));
  const auto text = show(set);
  ASSERT_TRUE(text);
  EXPECT_TRUE(Json::accept(*text));
}

TEST(Words, NameFlagsAndLeaveTheRestInHex) {
  EXPECT_EQ(in_words(pb::OPEN_FLAGS, 0102001), "O_WRONLY | O_APPEND | O_LARGEFILE");
  EXPECT_EQ(in_words(pb::OPEN_FLAGS, 0x40000002), "O_RDWR | 0x40000000");
  EXPECT_EQ(in_words(pb::OPEN_FLAGS, 0), "");
  EXPECT_EQ(in_words(pb::PAGEMAP_FLAGS, 6), "PE_LAZY | PE_PRESENT");
  EXPECT_EQ(in_words(pb::DEVICE, 266338304), "254:0");
  EXPECT_EQ(in_words(pb::SOCKET_STATE, 10), "LISTEN");
  EXPECT_EQ(in_words(pb::SOCKET_STATE, 99), "99");
  EXPECT_EQ(in_words(pb::HEX, 255), "0xff");
}

TEST(Words, AreReadableForBytesAndAddresses) {
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(quoted_bytes(std::string_view("\0a=\xff", 4)), "=00a=3D=FF");
  const std::array<std::uint32_t, 1> v4{16777343};
  const std::array<std::uint32_t, 4> v6{0, 0, 0, 16777216};
  EXPECT_EQ(address(v4), "127.0.0.1");
  EXPECT_EQ(address(v6), "::1");
  EXPECT_EQ(address(std::span(v6).first(3)), "");
}

}  // namespace
}  // namespace ferry::image
