#include "migrate/link.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <thread>

#include "migrate/message.pb.h"
#include "migrate/pump.h"

namespace ferry::migrate {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Ends {
  Link here;
  Link there;
  int raw;  // what `there` reads from is written here
};

Ends make_ends(int interrupt = -1) {
  std::array<int, 2> forth{};
  std::array<int, 2> back{};
  EXPECT_EQ(::pipe2(forth.data(), O_CLOEXEC), 0);
  EXPECT_EQ(::pipe2(back.data(), O_CLOEXEC), 0);
  const int raw = forth[1];
  return {Link(UniqueFd(back[0]), UniqueFd(forth[1]), interrupt, "there"),
          Link(UniqueFd(forth[0]), UniqueFd(back[1]), -1, "here"), raw};
}

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

TEST(Link, CarriesMessagesAndStreams) {
  Ends ends = make_ends();
  wire::Message question;
  question.mutable_ask()->set_move("abc");
  ASSERT_TRUE(ends.here.send(question));
  ASSERT_TRUE(ends.here.send_bulk(bytes_of("one")));
  ASSERT_TRUE(ends.here.send_bulk(bytes_of("two")));
  ASSERT_TRUE(ends.here.end_bulk());
  wire::Message arrived;
  ASSERT_TRUE(ends.there.receive(arrived, seconds(5)));
  EXPECT_EQ(arrived.ask().move(), "abc");
  const auto text = ends.there.receive_text(100);
  ASSERT_TRUE(text);
  EXPECT_EQ(*text, "onetwo");
}

TEST(Link, ReturnsTheSentenceOfAFailureAlsoInsideAStream) {
  Ends ends = make_ends();
  ASSERT_TRUE(ends.here.send_bulk(bytes_of("half")));
  wire::Message failure;
  failure.mutable_failure()->set_reason("the disk is full");
  ASSERT_TRUE(ends.here.send(failure));
  const auto text = ends.there.receive_text(100);
  ASSERT_FALSE(text);
  EXPECT_EQ(text.error().message(), "here: the disk is full");
}

TEST(Link, NoticesTheEndOfTheConnection) {
  Ends ends = make_ends();
  ends.here.close();
  wire::Message message;
  const auto result = ends.there.receive(message, seconds(5));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, Kind::gone);
}

TEST(Link, SaysThatThePeerIsSilent) {
  Ends ends = make_ends();
  wire::Message message;
  const auto result = ends.there.receive(message, milliseconds(20));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, Kind::gone);
}

TEST(Link, GivesUpOnAPeerThatTakesNothing) {
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd nobody_reads(pipe[0]);
  Link link(UniqueFd(), UniqueFd(pipe[1]), -1, "there");
  link.give_up_after(milliseconds(20));
  const std::string much(4 << 20, 'x');
  const auto result = link.send_bulk(bytes_of(much));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, Kind::gone);
}

TEST(Link, IsInterruptedWhileItWaits) {
  const UniqueFd interrupt(::eventfd(1, EFD_CLOEXEC));
  Ends ends = make_ends(interrupt.get());
  wire::Message message;
  const auto result = ends.here.receive(message, seconds(30));
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind, Kind::invalid);
  EXPECT_FALSE(ends.here.check_interrupt());
  ends.here.no_interrupts();
  EXPECT_TRUE(ends.here.check_interrupt());
}

struct RawHead {
  std::uint32_t kind;
  std::uint32_t zero;
  std::uint64_t length;
};

Result<void> receive_raw(const RawHead& head) {
  Ends ends = make_ends();
  EXPECT_EQ(::write(ends.raw, &head, sizeof head), static_cast<ssize_t>(sizeof head));
  wire::Message message;
  return ends.there.receive(message, seconds(5));
}

TEST(Link, TrustsNoHead) {
  for (const RawHead& head : {RawHead{0, 0, 4}, RawHead{9, 0, 4}, RawHead{1, 7, 4}, RawHead{1, 0, 1ULL << 40},
                              RawHead{2, 0, 17ULL << 20}, RawHead{3, 0, 17ULL << 20}, RawHead{4, 0, 33}}) {
    const auto result = receive_raw(head);
    ASSERT_FALSE(result) << head.kind;
    EXPECT_EQ(result.error().kind, Kind::corrupt) << head.kind;
  }
}

TEST(Link, SaysWhenLoginFilesPrintIntoTheProtocol) {
  Ends ends = make_ends();
  constexpr std::string_view kNoise = "Welcome to host two!\n";
  ASSERT_EQ(::write(ends.raw, kNoise.data(), kNoise.size()), static_cast<ssize_t>(kNoise.size()));
  wire::Message message;
  const auto result = ends.there.receive(message, seconds(5));
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message().find("login files"), std::string::npos);
}

TEST(Pump, KeepsAStreamOpenEndedIfItsWriterFails) {
  Ends ends = make_ends();
  const auto sent = send_written(ends.here, [](int fd) -> Result<void> {
    EXPECT_EQ(::write(fd, "part", 4), 4);
    return fail(Kind::os, "the writer failed");
  });
  ASSERT_FALSE(sent);
  EXPECT_EQ(sent.error().what, "the writer failed");
  ends.here.close();
  EXPECT_FALSE(ends.there.receive_text(100));
}

TEST(Pump, ReportsAReaderThatFailsEarly) {
  Ends ends = make_ends();
  std::thread sender([&] {
    const std::string much(3 << 20, 'x');
    EXPECT_TRUE(ends.here.send_bulk(bytes_of(much)));
    EXPECT_TRUE(ends.here.end_bulk());
  });
  // As the programs that use it do.
  ::signal(SIGPIPE, SIG_IGN);
  const auto received = receive_read(ends.there, [](int) -> Result<void> { return fail(Kind::os, "no room"); });
  sender.join();
  ASSERT_FALSE(received);
  EXPECT_EQ(received.error().what, "no room");
}

}  // namespace
}  // namespace ferry::migrate
