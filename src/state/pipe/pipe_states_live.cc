// Pipes and FIFOs that are full, closed on one side, shared, or without a reader.
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(PipeStates, FullOfSmallPieces) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_NONBLOCK), 0);
  std::size_t total = 0;
  for (;;) {  // one byte and a page by turns: slots run out before bytes
    const std::string piece(total % 2 == 0 ? 1 : 4096, 'p');
    const ssize_t n = ::write(ends[1], piece.data(), piece.size());
    if (n <= 0) {
      break;
    }
    total += static_cast<std::size_t>(n);
  }
  const bool writable = [&] {
    pollfd p{ends[1], POLLOUT, 0};
    return ::poll(&p, 1, 0) == 1;
  }();
  checkpoint_here();
  int held = 0;
  ASSERT_EQ(::ioctl(ends[0], FIONREAD, &held), 0);
  EXPECT_EQ(static_cast<std::size_t>(held), total);
  pollfd p{ends[1], POLLOUT, 0};
  EXPECT_EQ(::poll(&p, 1, 0) == 1, writable);
}

LIVE_TEST(PipeStates, ClosedEnds) {
  int no_reader[2], no_writer[2], none[2];
  ASSERT_EQ(::pipe(no_reader), 0);
  ASSERT_EQ(::pipe(no_writer), 0);
  ASSERT_EQ(::pipe(none), 0);
  ASSERT_EQ(::write(no_reader[1], "lost", 4), 4);
  ::close(no_reader[0]);
  ::close(no_writer[1]);
  ::signal(SIGPIPE, SIG_IGN);
  checkpoint_here();
  EXPECT_EQ(::write(no_reader[1], "x", 1), -1);
  EXPECT_EQ(errno, EPIPE);
  char byte = 0;
  EXPECT_EQ(::read(no_writer[0], &byte, 1), 0);
  EXPECT_EQ(::write(none[1], "x", 1), 1);
  EXPECT_EQ(::read(none[0], &byte, 1), 1);
}

LIVE_TEST(PipeStates, SharedByProcessesAndReopened) {
  int ends[2], go[2], say[2];
  ASSERT_EQ(::pipe(ends), 0);
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(say), 0);
  const int both = ::open(("/proc/self/fd/" + std::to_string(ends[0])).c_str(), O_RDWR | O_NONBLOCK);
  ASSERT_GE(both, 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[0]);
    ::close(both);
    char byte = 'r';
    (void)!::write(say[1], &byte, 1);
    (void)!::read(go[0], &byte, 1);
    (void)!::write(ends[1], "from the child", 14);
    ::_exit(0);
  }
  ::close(ends[1]);
  char ready = 0;
  ASSERT_EQ(::read(say[0], &ready, 1), 1);
  checkpoint_here();
  ASSERT_EQ(::write(both, "self ", 5), 5);
  ASSERT_EQ(::write(go[1], "x", 1), 1);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child);
  char got[64] = {};
  EXPECT_EQ(::read(ends[0], got, sizeof got), 19);
  EXPECT_STREQ(got, "self from the child");
  ::close(both);
  EXPECT_EQ(::read(ends[0], got, sizeof got), 0);
}

LIVE_TEST(PipeStates, LargeAndSmallCapacities) {
  int large[2], small[2];
  ASSERT_EQ(::pipe(large), 0);
  ASSERT_EQ(::pipe(small), 0);
  ASSERT_EQ(::fcntl(large[1], F_SETPIPE_SZ, 1 << 20), 1 << 20);
  ASSERT_EQ(::fcntl(small[1], F_SETPIPE_SZ, 4096), 4096);
  const std::string much(900'000, 'm');
  ASSERT_EQ(::write(large[1], much.data(), much.size()), static_cast<ssize_t>(much.size()));
  checkpoint_here();
  EXPECT_EQ(::fcntl(large[0], F_GETPIPE_SZ), 1 << 20);
  EXPECT_EQ(::fcntl(small[0], F_GETPIPE_SZ), 4096);
  int held = 0;
  ASSERT_EQ(::ioctl(large[0], FIONREAD, &held), 0);
  EXPECT_EQ(held, 900'000);
}

LIVE_TEST_WITH(PipeStates, FifoWithAWriterAndDataButNoReader, Options{.leave_running = false}) {
  const std::string path = "/tmp/ferry-fifo-" + std::to_string(::getpid());
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const int first = ::open(path.c_str(), O_RDONLY | O_NONBLOCK);
  const int writer = ::open(path.c_str(), O_WRONLY);
  ASSERT_EQ(::write(writer, "waiting", 7), 7);
  ::close(first);
  checkpoint_here();
  const int reader = ::open(path.c_str(), O_RDONLY | O_NONBLOCK);
  char got[16] = {};
  EXPECT_EQ(::read(reader, got, sizeof got), 7);
  EXPECT_STREQ(got, "waiting");
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

LIVE_TEST(PipeStates, ReaderAsleep) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::string got;
  std::atomic<pid_t> tid{0};
  std::thread thread([&] {
    tid = ::gettid();
    char buffer[16] = {};
    const ssize_t n = ::read(ends[0], buffer, sizeof buffer);
    got = n < 0 ? "?" : std::string(buffer, static_cast<std::size_t>(n));
  });
  ASSERT_TRUE(detail::wait_until_in_call(tid, 0));
  checkpoint_here();
  ASSERT_EQ(::write(ends[1], "awake", 5), 5);
  thread.join();
  EXPECT_EQ(got, "awake");
}

}  // namespace
}  // namespace ferry::live
