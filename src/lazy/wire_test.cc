#include "lazy/wire.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "base/unique_fd.h"

namespace ferry::lazy {
namespace {

using image::Name;
using image::Type;

struct Pair {
  UniqueFd ours, theirs;
  Pair() {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    ours.reset(ends[0]);
    theirs.reset(ends[1]);
  }
};

// What CRIU 4.2 sends for three pages with content at 0x7f0012345000 of the process 42.
TEST(PageWire, IsTheLayoutOfCriu42) {
  const Command command{static_cast<std::uint16_t>(Verb::add_f), 4, 3, 0x7f0012345000, 42 << 8 | 1};
  const unsigned char expected[kHeaderSize] = {6,    0,    4,    0,    0,    0,    0, 0, 3,    0,    0, 0, 0, 0, 0, 0,
                                               0x00, 0x50, 0x34, 0x12, 0x00, 0x7f, 0, 0, 0x01, 0x2a, 0, 0, 0, 0, 0, 0};
  const auto bytes = encode(command);
  EXPECT_EQ(std::memcmp(bytes.data(), expected, kHeaderSize), 0);
  EXPECT_EQ(decode(bytes), command);
  EXPECT_EQ(encode(lazy::command(Verb::close))[0], std::byte{0x23});
  EXPECT_EQ(encode(lazy::command(Verb::close))[1], std::byte{0x10});
}

TEST(PageWire, KnowsDestinationsOfAllReleases) {
  EXPECT_EQ(destination_of({Type::pagemap, 42}), 42U << 8 | 1);
  EXPECT_EQ(destination_of({Type::pagemap_shmem, 7}), 7U << 8 | 2);
  for (const std::uint64_t type : {1, 10, 11, 16, 17}) {
    EXPECT_EQ(pagemap_of(42 << 8 | type), (Name{Type::pagemap, 42}));
  }
  for (const std::uint64_t type : {2, 27, 28, 29, 32, 33, 34}) {
    EXPECT_EQ(pagemap_of(7 << 8 | type), (Name{Type::pagemap_shmem, 7}));
  }
  for (const std::uint64_t none : {0, 3, 9, 12, 35, 255}) {
    EXPECT_EQ(pagemap_of(42 << 8 | none), std::nullopt);
  }
}

TEST(PageWire, TellsAnEndFromAnEndWithinACommand) {
  Pair pair;
  ASSERT_TRUE(send(pair.ours.get(), command(Verb::open2, 5)).has_value());
  ASSERT_EQ(::write(pair.ours.get(), "half", 4), 4);
  pair.ours.reset();
  const auto whole = receive(pair.theirs.get());
  ASSERT_TRUE(whole.has_value());
  EXPECT_EQ((*whole)->destination, 5U);
  const auto half = receive(pair.theirs.get());
  ASSERT_FALSE(half.has_value());
  EXPECT_EQ(half.error().kind, Kind::corrupt);

  Pair other;
  other.ours.reset();
  const auto end = receive(other.theirs.get());
  ASSERT_TRUE(end.has_value());
  EXPECT_FALSE(end->has_value());
}

}  // namespace
}  // namespace ferry::lazy
