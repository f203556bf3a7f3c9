// Memory that is fetched while it is used: both ends in this very process.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <thread>

#include "image/page_store.h"
#include "lazy/fault_server.h"
#include "migrate/message.pb.h"
#include "migrate/post_copy_lane.h"
#include "migrate/post_copy_supply.h"
#include "migrate/record.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

constexpr std::size_t kPage = image::kPageSize;
constexpr std::size_t kPages = 2048;
constexpr std::size_t kWords = kPage / 8;
const NsPid kPid(7);

std::pair<Link, Link> two_ends() {
  std::array<int, 2> one{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, one.data()), 0);
  const auto end = [](int fd, const char* peer) { return Link(UniqueFd(fd), UniqueFd(::dup(fd)), -1, peer); };
  return {end(one[0], "the destination"), end(one[1], "the source")};
}

// A region with content, every page of which but each fourth begins with its number plus one, and one of the same size
// that lacks all of it.
class PostCopy : public testing::Test {
 protected:
  void SetUp() override {
    const auto map = [] {
      return static_cast<std::uint64_t*>(
          ::mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    };
    here_ = map();
    there_ = map();
    uffd_ = UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
    if (!uffd_) {
      GTEST_SKIP() << "userfaultfd(2) needs CAP_SYS_PTRACE";
    }
    for (std::size_t p = 0; p < kPages; ++p) {
      here_[p * kWords] = expected(p);
    }
    ASSERT_TRUE(sys::missing_negotiate(uffd_.get()).has_value());
    ASSERT_TRUE(sys::missing_register(uffd_.get(), address(there_), address(there_) + kPages * kPage).has_value());
    auto memory = sys::open("/proc/self/mem", O_RDONLY);
    ASSERT_TRUE(memory.has_value());
    supply_.offer(kPid, HostPid(::getpid()), std::make_shared<const UniqueFd>(std::move(*memory)));
    missing_.add(address(here_), address(here_) + kPages * kPage);
    missing_.move(address(here_), address(there_), kPages * kPage);
    auto background = PostCopyLane::make(true);
    auto faults = PostCopyLane::make(false);
    ASSERT_TRUE(background.has_value() && faults.has_value());
    background_ = std::move(*background);
    faults_ = std::move(*faults);
    server_.add_source(*background_, lazy::Lane::background);
    server_.add_source(*faults_, lazy::Lane::faults);
  }
  void TearDown() override {
    for (std::thread& thread : serving_) {
      thread.join();
    }
    uffd_.reset();  // while it is open, unmapping what it watches waits until somebody has read of it
    ::munmap(here_, kPages * kPage);
    ::munmap(there_, kPages * kPage);
  }
  static std::uint64_t address(const std::uint64_t* at) { return reinterpret_cast<std::uint64_t>(at); }
  static std::uint64_t expected(std::size_t page) { return page % 4 == 0 ? 0 : page + 1; }
  [[nodiscard]] std::uint64_t first_word(std::size_t page) const {
    return *static_cast<volatile std::uint64_t*>(there_ + page * kWords);
  }
  void connect(PostCopyLane& lane) {
    auto [source, destination] = two_ends();
    serving_.emplace_back([this, link = std::move(source)]() mutable { static_cast<void>(supply_.serve(link)); });
    lane.connect(std::move(destination));
  }
  void run_and_touch() {
    ASSERT_TRUE(server_.add_process(kPid, std::move(uffd_), missing_).has_value());
    std::thread toucher([this] {
      for (std::size_t p = kPages; p-- > 0;) {
        ASSERT_EQ(first_word(p), expected(p)) << p;
      }
    });
    const auto served = server_.run();
    toucher.join();
    ASSERT_TRUE(served.has_value()) << served.error().message();
    EXPECT_EQ(server_.missing_bytes(), 0U);
    background_->tell_all_here();
    faults_->tell_all_here();
  }

  std::uint64_t* here_ = nullptr;
  std::uint64_t* there_ = nullptr;
  UniqueFd uffd_;
  lazy::Missing missing_;
  PostCopySupply supply_{false};
  std::unique_ptr<PostCopyLane> background_, faults_;  // outlive the server
  lazy::FaultServer server_;
  std::vector<std::thread> serving_;
};

TEST_F(PostCopy, BringsEverythingOverTwoConnections) {
  connect(*background_);
  connect(*faults_);
  run_and_touch();
}

TEST_F(PostCopy, BringsEverythingOverOneConnection) {
  connect(*background_);
  run_and_touch();
}

TEST_F(PostCopy, CountsPagesOfZerosAsNothingThatWasPut) {
  connect(*background_);
  run_and_touch();
  EXPECT_EQ(server_.report().pages, kPages / 4 * 3);
}

// Who touches a page while nobody brings any waits, and finds it when somebody does.
TEST_F(PostCopy, WaitsForANewConnection) {
  auto [source, destination] = two_ends();
  background_->connect(std::move(destination));
  std::thread breaker([link = std::move(source)]() mutable {
    wire::Message message;
    static_cast<void>(link.receive(message, std::chrono::seconds(10)));
    link.close();  // with a question open
  });
  std::array<int, 2> wake{};
  ASSERT_EQ(::pipe2(wake.data(), O_CLOEXEC), 0);
  const UniqueFd reader(wake[0]);
  const UniqueFd writer(wake[1]);
  ASSERT_TRUE(server_
                  .watch(reader.get(),
                         [&]() -> Result<bool> {
                           connect(*background_);
                           return false;
                         })
                  .has_value());
  std::thread mender([&] {
    breaker.join();
    static_cast<void>(!::write(writer.get(), "", 1));
  });
  run_and_touch();
  mender.join();
}

TEST_F(PostCopy, BelievesNoOtherPagesThanThoseItAskedFor) {
  auto [source, destination] = two_ends();
  background_->connect(std::move(destination));
  ASSERT_TRUE(background_->ask({kPid, address(here_), address(here_) + 2 * kPage}).has_value());
  PageBatch batch;
  batch.begin({image::Type::pagemap, 7});
  std::memset(batch.tail().data(), 1, kPage);
  batch.keep(address(here_) + kPage, kPage);
  ASSERT_TRUE(batch.send(source, false).has_value());
  const auto taken = background_->take();
  ASSERT_FALSE(taken.has_value());
  EXPECT_EQ(taken.error().kind, Kind::corrupt);
  EXPECT_FALSE(background_->connected());
}

// Faults of other connections are served by the thread that asks.
TEST_F(PostCopy, AskingNeverWaitsForAConnectionThatTakesNothing) {
  auto [source, destination] = two_ends();
  background_->connect(std::move(destination));
  constexpr std::size_t kQuestions = 20000;  // more than a socket holds
  for (std::size_t i = 0; i < kQuestions; ++i) {
    ASSERT_TRUE(background_->ask({kPid, address(here_) + i % kPages * kPage, address(here_) + (i % kPages + 1) * kPage})
                    .has_value());
  }
  EXPECT_TRUE(background_->connected());
  std::thread reader([&, link = std::move(source)]() mutable {
    for (std::size_t i = 0; i < kQuestions; ++i) {
      wire::Message message;
      ASSERT_TRUE(link.receive(message, std::chrono::seconds(10)).has_value()) << i;
      ASSERT_EQ(message.want().vaddr(), address(here_) + i % kPages * kPage);
    }
  });
  for (;;) {
    pollfd ready{.fd = background_->descriptor(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(::poll(&ready, 1, 10000), 1) << "the lane has something to say, or its peer has hung up";
    if (const auto taken = background_->take(); !taken) {
      EXPECT_EQ(taken.error().kind, Kind::gone) << taken.error().message();  // all of it was read
      break;
    }
  }
  reader.join();
}

TEST_F(PostCopy, ServesNoProcessThatWasNotOffered) {
  auto [source, destination] = two_ends();
  wire::Message message;
  message.mutable_want()->set_pid(8);
  message.mutable_want()->set_vaddr(address(here_));
  message.mutable_want()->set_bytes(kPage);
  ASSERT_TRUE(destination.send(message).has_value());
  const auto served = supply_.serve(source);
  ASSERT_FALSE(served.has_value());
  EXPECT_EQ(served.error().kind, Kind::corrupt);
}

TEST(LinkPolling, KeepsAFrameThatComesInPieces) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  const UniqueFd writer(ends[0]);
  Link link(UniqueFd(ends[1]), UniqueFd(::dup(ends[1])), -1, "a peer");
  std::array<char, 16 + 5> frame{2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 'h', 'e', 'l', 'l', 'o'};
  std::vector<std::byte> body;
  for (std::size_t i = 0; i < frame.size(); ++i) {
    const auto early = link.poll_frame(body);
    ASSERT_TRUE(early.has_value() && !early->has_value()) << i;
    ASSERT_EQ(::write(writer.get(), &frame[i], 1), 1);
  }
  const auto whole = link.poll_frame(body);
  ASSERT_TRUE(whole.has_value() && whole->has_value());
  EXPECT_EQ((*whole)->kind, FrameKind::bulk);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(body.data()), body.size()), "hello");
}

TEST(GivenRecord, OfAPostCopyIsNotForAFerryThatWouldEndItsMemory) {
  GivenRecord record;
  record.move = std::string(32, 'a');
  record.post_copy = true;
  const std::string text = encode_given(record);
  EXPECT_NE(text.find("\"version\":2"), std::string::npos);
  const auto back = decode_given(text);
  ASSERT_TRUE(back.has_value()) << back.error().message();
  EXPECT_TRUE(back->post_copy);
  record.post_copy = false;
  EXPECT_NE(encode_given(record).find("\"version\":1"), std::string::npos);
}

}  // namespace
}  // namespace ferry::migrate
