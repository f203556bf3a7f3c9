#include "migrate/page_batch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>
#include <string>

#include "image/page_store.h"
#include "migrate/message.pb.h"
#include "migrate/page_streams.h"

namespace ferry::migrate {
namespace {

using std::chrono::seconds;
constexpr std::size_t kPage = 4096;
constexpr image::Name kPagemap{image::Type::pagemap, 42};

struct Ends {
  std::optional<Link> here;
  std::optional<Link> there;
};

// Large enough for what is sent before anybody reads.
Ends make_ends() {
  std::array<int, 2> forth{};
  EXPECT_EQ(::pipe2(forth.data(), O_CLOEXEC), 0);
  EXPECT_GT(::fcntl(forth[1], F_SETPIPE_SZ, 1 << 20), 0);
  Ends out;
  out.here.emplace(UniqueFd(), UniqueFd(forth[1]), -1, "there");
  out.there.emplace(UniqueFd(forth[0]), UniqueFd(), -1, "here");
  return out;
}

struct SentRun {
  std::uint64_t vaddr, pages;
  std::string content;
  bool operator==(const SentRun&) const = default;
};

Result<std::vector<SentRun>> receive_one(Link& link, std::uint64_t* wire = nullptr) {
  FERRY_TRY(const auto frame, link.receive_head(seconds(5)));
  EXPECT_EQ(frame.kind, FrameKind::pages);
  if (wire != nullptr) {
    *wire = frame.length;
  }
  std::vector<SentRun> out;
  BatchReader reader;
  FERRY_CHECK(reader.receive(link, frame, [&](image::Name name, std::span<const ArrivedPages> runs) -> Result<void> {
    EXPECT_EQ(name, kPagemap);
    for (const ArrivedPages& run : runs) {
      EXPECT_EQ(run.zeros, run.content.empty());
      out.push_back({run.vaddr, run.pages, {reinterpret_cast<const char*>(run.content.data()), run.content.size()}});
    }
    return {};
  }));
  return out;
}

std::string page_of(char c) { return std::string(kPage, c); }

void put(PageBatch& batch, std::uint64_t vaddr, const std::string& content) {
  std::memcpy(batch.tail().data(), content.data(), content.size());
  batch.keep(vaddr, content.size());
}

TEST(PageBatch, SendsTheContentOfPagesThatAreNotZeroAndThePlaceOfAll) {
  for (const bool pack : {false, true}) {
    Ends ends = make_ends();
    PageBatch batch;
    batch.begin(kPagemap);
    put(batch, 0x10000, page_of('\0') + page_of('a') + page_of('b') + page_of('\0'));
    batch.drop(kPage);
    put(batch, 0x50000, page_of('c'));
    put(batch, 0x51000, page_of('\0') + page_of('\0'));
    EXPECT_EQ(batch.content_bytes(), 3 * kPage);
    ASSERT_TRUE(batch.send(*ends.here, pack));
    EXPECT_TRUE(batch.empty());
    std::uint64_t wire = 0;
    const auto runs = receive_one(*ends.there, &wire);
    ASSERT_TRUE(runs);
    const std::vector<SentRun> expected{{0x10000, 1, ""},
                                        {0x11000, 2, page_of('a') + page_of('b')},
                                        {0x13000, 1, ""},
                                        {0x50000, 1, page_of('c')},
                                        {0x51000, 2, ""}};
    EXPECT_EQ(*runs, expected);
    if (pack) {
      EXPECT_LT(wire, kPage);
    } else {
      EXPECT_EQ(wire, sizeof(BatchHead) + 5 * sizeof(PageRun) + 3 * kPage);
    }
  }
}

TEST(PageBatch, GoesAsItIsWhenPackingDoesNotMakeItSmaller) {
  Ends ends = make_ends();
  PageBatch batch;
  batch.begin(kPagemap);
  std::string noise(kPage, '\0');
  std::uint64_t x = 88172645463325252ULL;
  for (char& c : noise) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    c = static_cast<char>(x);
  }
  put(batch, 0x10000, noise);
  ASSERT_TRUE(batch.send(*ends.here, true));
  std::uint64_t wire = 0;
  const auto runs = receive_one(*ends.there, &wire);
  ASSERT_TRUE(runs);
  EXPECT_EQ(wire, sizeof(BatchHead) + sizeof(PageRun) + kPage);
  EXPECT_EQ(runs->front().content, noise);
}

TEST(PageBatch, IsFullWhenNoFurtherPageFits) {
  PageBatch batch;
  batch.begin(kPagemap);
  for (std::size_t i = 0; i < kBatchRuns; ++i) {
    EXPECT_FALSE(batch.full());
    put(batch, 0x10000 + i * 2 * kPage, page_of(i % 2 == 0 ? 'x' : '\0'));
  }
  EXPECT_TRUE(batch.full());
}

struct Wire {  // a batch as it might come from anybody
  BatchHead head{.image_type = static_cast<std::uint32_t>(image::Type::pagemap),
                 .packing = Packing::none,
                 .image_id = 42,
                 .runs = 1,
                 .reserved = 0,
                 .content = kPage};
  PageRun run{0x10000, 1, 0};
  std::string content = page_of('x');
};

Result<void> read_wire(const Wire& wire) {
  std::string bytes(reinterpret_cast<const char*>(&wire.head), sizeof wire.head);
  bytes.append(reinterpret_cast<const char*>(&wire.run), sizeof wire.run).append(wire.content);
  BatchReader reader;
  bool taken = false;
  auto out = reader.read(std::as_bytes(std::span(bytes)), "somebody",
                         [&](image::Name, std::span<const ArrivedPages>) -> Result<void> {
                           taken = true;
                           return {};
                         });
  EXPECT_EQ(taken, out.has_value()) << "pages were taken of a batch that was refused";
  return out;
}

TEST(BatchReader, TrustsNoBatch) {
  EXPECT_TRUE(read_wire({}));
  const auto wrong = [](auto change) {
    Wire wire;
    change(wire);
    const auto out = read_wire(wire);
    return !out && out.error().kind == Kind::corrupt;
  };
  EXPECT_TRUE(wrong([](Wire& w) { w.head.image_type = static_cast<std::uint32_t>(image::Type::core); }));
  EXPECT_TRUE(wrong([](Wire& w) { w.head.runs = 2; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.head.runs = 0xffffffff; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.head.content = 2 * kPage; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.head.content = 1ULL << 60; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.head.packing = Packing::zstd; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.head.packing = static_cast<Packing>(7); }));
  EXPECT_TRUE(wrong([](Wire& w) { w.run.vaddr += 1; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.run.vaddr = 1ULL << 47; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.run.pages = 0; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.run.pages = 0xffffffff; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.run.zero = 1; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.run.zero = 2; }));
  EXPECT_TRUE(wrong([](Wire& w) { w.content.pop_back(); }));
  EXPECT_TRUE(wrong([](Wire& w) { w.content.push_back('x'); }));
}

TEST(OrderedPages, TellsEvenOfAPagemapWithoutPages) {
  Ends ends = make_ends();
  std::vector<Link> none;
  PageStreams streams(*ends.here, none, false);
  OrderedPages pages(streams, kPagemap);
  pages.describe(0x90000, 7, image::kLazy);
  ASSERT_TRUE(pages.finish());
  const auto runs = receive_one(*ends.there);
  ASSERT_TRUE(runs);
  EXPECT_TRUE(runs->empty());
}

TEST(OrderedPages, PutsPagesWhereTheyWereDescribed) {
  Ends ends = make_ends();
  std::vector<Link> none;
  PageStreams streams(*ends.here, none, false);
  OrderedPages pages(streams, kPagemap);
  pages.describe(0x10000, 1, image::kPresent);
  pages.describe(0x30000, 2, image::kPresent);
  const std::string content = page_of('a') + page_of('b') + page_of('\0');
  ASSERT_TRUE(pages.append(std::as_bytes(std::span(content))));
  ASSERT_TRUE(pages.finish());
  const auto runs = receive_one(*ends.there);
  ASSERT_TRUE(runs);
  const std::vector<SentRun> expected{{0x10000, 1, page_of('a')}, {0x30000, 1, page_of('b')}, {0x31000, 1, ""}};
  EXPECT_EQ(*runs, expected);
}

TEST(OrderedPages, NoticesPagesThatWereNotDescribed) {
  Ends ends = make_ends();
  std::vector<Link> none;
  PageStreams streams(*ends.here, none, false);
  OrderedPages pages(streams, kPagemap);
  pages.describe(0x10000, 1, image::kPresent);
  EXPECT_FALSE(pages.finish());
  const std::string content(2 * kPage, 'x');
  EXPECT_FALSE(pages.append(std::as_bytes(std::span(content))));
}

}  // namespace
}  // namespace ferry::migrate
