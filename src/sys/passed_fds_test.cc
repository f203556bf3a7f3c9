#include "sys/passed_fds.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>

namespace ferry::sys {
namespace {

class PassedFds : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    here = UniqueFd(ends[0]);
    there = UniqueFd(ends[1]);
  }
  Result<Passed> receive() { return receive_with_fds(there.get(), room, "a pair"); }
  Result<std::size_t> send(std::span<const int> fds) {
    return send_with_fds(here.get(), std::as_bytes(std::span("word", 4)), fds, "a pair");
  }

  UniqueFd here, there;
  std::array<std::byte, 16> room{};
};

TEST_F(PassedFds, ArriveInOrderAndCloseOnExec) {
  const UniqueFd null(::open("/dev/null", O_RDONLY)), zero(::open("/dev/zero", O_RDONLY));
  const std::array fds{null.get(), zero.get()};
  ASSERT_TRUE(send(fds).has_value());
  const auto got = receive();
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(got->bytes, 4U);
  ASSERT_EQ(got->fds.size(), 2U);
  for (std::size_t i = 0; i < 2; ++i) {
    struct stat sent {};
    struct stat arrived {};
    ASSERT_EQ(::fstat(fds[i], &sent), 0);
    ASSERT_EQ(::fstat(got->fds[i].get(), &arrived), 0);
    EXPECT_EQ(sent.st_rdev, arrived.st_rdev);
    EXPECT_EQ(::fcntl(got->fds[i].get(), F_GETFD), FD_CLOEXEC);
  }
}

TEST_F(PassedFds, MayBeNone) {
  ASSERT_TRUE(send({}).has_value());
  const auto got = receive();
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(got->bytes, 4U);
  EXPECT_TRUE(got->fds.empty());
}

TEST_F(PassedFds, SayWhenTheOtherSideHasHungUp) {
  here.reset();
  const auto got = receive();
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(got->bytes, 0U);
}

TEST_F(PassedFds, DoNotKillWhoSendsToNobody) {
  there.reset();
  const auto sent = send({});
  ASSERT_FALSE(sent.has_value());
  EXPECT_EQ(sent.error().os_errno, EPIPE);
}

TEST_F(PassedFds, AreNotMoreThanThereIsRoomFor) {
  const std::array fds{0, 0, 0};
  EXPECT_FALSE(send(fds).has_value());
}

}  // namespace
}  // namespace ferry::sys
