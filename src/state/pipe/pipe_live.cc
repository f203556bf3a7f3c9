#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string take(int fd, std::size_t most) {
  std::string out(most, '\0');
  const ssize_t n = ::read(fd, out.data(), out.size());
  out.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
  return out;
}

LIVE_TEST(Pipe, KeepsBytesCapacityAndFlags) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_NONBLOCK), 0);
  ASSERT_EQ(::fcntl(fds[0], F_SETPIPE_SZ, 16384), 16384);
  ASSERT_EQ(::write(fds[1], "unread", 6), 6);
  checkpoint_here();
  EXPECT_EQ(::fcntl(fds[0], F_GETPIPE_SZ), 16384);
  EXPECT_NE(::fcntl(fds[0], F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(take(fds[0], 100), "unread");
  EXPECT_EQ(::write(fds[1], "more", 4), 4);
  EXPECT_EQ(take(fds[0], 100), "more");
  ::close(fds[1]);
  char byte = 0;
  EXPECT_EQ(::read(fds[0], &byte, 1), 0) << "the end of file: nobody else has the writing end";
}

LIVE_TEST(Pipe, KeepsPackets) {
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_DIRECT), 0);
  ASSERT_EQ(::write(fds[1], "first", 5), 5);
  ASSERT_EQ(::write(fds[1], "second", 6), 6);
  checkpoint_here();
  EXPECT_EQ(take(fds[0], 100), "first");
  EXPECT_EQ(take(fds[0], 100), "second");
  ASSERT_EQ(::write(fds[1], "a", 1), 1);
  ASSERT_EQ(::write(fds[1], "b", 1), 1);
  EXPECT_EQ(take(fds[0], 100), "a");
}

LIVE_TEST(Pipe, KeepsALoneReadingEnd) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  ASSERT_EQ(::write(fds[1], "last", 4), 4);
  ::close(fds[1]);
  checkpoint_here();
  EXPECT_EQ(take(fds[0], 100), "last");
  char byte = 0;
  EXPECT_EQ(::read(fds[0], &byte, 1), 0);
}

// The source removes the FIFO at its end, before the copy would begin.
LIVE_TEST_WITH(Fifo, KeepsBytesAndEnds, Options{.leave_running = false}) {
  const std::string path = "/tmp/ferry-fifo-" + std::to_string(::getpid());
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int reader = ::open(path.c_str(), O_RDONLY | O_NONBLOCK);
  const int writer = ::open(path.c_str(), O_WRONLY);
  ASSERT_GE(writer, 0);
  ASSERT_EQ(::write(writer, "queued", 6), 6);
  checkpoint_here();
  EXPECT_EQ(take(reader, 100), "queued");
  ::close(writer);
  char byte = 0;
  EXPECT_EQ(::read(reader, &byte, 1), 0);
  ::unlink(path.c_str());
}

}  // namespace
}  // namespace ferry::live
