// Watches on what is gone, and events that nobody has read.
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string own_name(const char* what) { return "/tmp/ferry-ino-" + std::to_string(::getpid()) + "-" + what; }

std::vector<std::pair<int, std::uint32_t>> events(int fd) {
  alignas(inotify_event) char room[65536];
  std::vector<std::pair<int, std::uint32_t>> out;
  const ssize_t n = ::read(fd, room, sizeof room);
  for (ssize_t at = 0; at < n;) {
    const auto* event = reinterpret_cast<const inotify_event*>(room + at);
    out.emplace_back(event->wd, event->mask);
    at += static_cast<ssize_t>(sizeof(inotify_event) + event->len);
  }
  return out;
}

LIVE_TEST(InotifyEvents, WatchesADeletedFileThatIsOpen) {
  const std::string path = own_name("gone");
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  const int fd = ::inotify_init1(IN_NONBLOCK);
  const int wd = ::inotify_add_watch(fd, path.c_str(), IN_MODIFY);
  ASSERT_GE(wd, 1);
  ASSERT_EQ(::unlink(path.c_str()), 0);
  ASSERT_TRUE(events(fd).empty());
  checkpoint_here();
  EXPECT_TRUE(events(fd).empty());
  ASSERT_EQ(::write(file, "x", 1), 1);
  const auto got = events(fd);
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0].first, wd);
  EXPECT_EQ(got[0].second, static_cast<std::uint32_t>(IN_MODIFY));
}

LIVE_TEST_WITH(InotifyEvents, NumbersWithGapsAndOneShots, Options{.leave_running = false}) {
  const std::string a = own_name("a"), b = own_name("b"), c = own_name("c");
  for (const std::string& path : {a, b, c}) {
    ::close(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600));
  }
  const int fd = ::inotify_init1(IN_NONBLOCK);
  const int first = ::inotify_add_watch(fd, a.c_str(), IN_ATTRIB);
  const int second = ::inotify_add_watch(fd, b.c_str(), IN_OPEN | IN_ONESHOT);
  const int third = ::inotify_add_watch(fd, c.c_str(), IN_OPEN);
  ASSERT_EQ(::inotify_rm_watch(fd, first), 0);
  (void)events(fd);
  checkpoint_here();
  ::close(::open(b.c_str(), O_RDONLY));
  ::close(::open(b.c_str(), O_RDONLY));
  ::close(::open(c.c_str(), O_RDONLY));
  const auto got = events(fd);
  ASSERT_EQ(got.size(), 3U);
  EXPECT_EQ(got[0], (std::pair<int, std::uint32_t>(second, IN_OPEN)));
  EXPECT_EQ(got[1], (std::pair<int, std::uint32_t>(second, IN_IGNORED)));
  EXPECT_EQ(got[2], (std::pair<int, std::uint32_t>(third, IN_OPEN)));
  const int next = ::inotify_add_watch(fd, a.c_str(), IN_ATTRIB);
  EXPECT_GT(next, third);
  for (const std::string& path : {a, b, c}) {
    EXPECT_EQ(::unlink(path.c_str()), 0);
  }
}

// The kernel has no way to put events back; its own word for lost ones is IN_Q_OVERFLOW (inotify(7)).
LIVE_TEST_WITH(InotifyEvents, UnreadOnesComeBackAsAnOverflow, Options{.leave_running = false}) {
  const std::string path = own_name("busy");
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  const int fd = ::inotify_init1(IN_NONBLOCK);
  const int wd = ::inotify_add_watch(fd, path.c_str(), IN_MODIFY);
  ASSERT_EQ(::write(file, "x", 1), 1);
  checkpoint_here();
  auto got = events(fd);
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0], (std::pair<int, std::uint32_t>(-1, IN_Q_OVERFLOW)));
  EXPECT_TRUE(events(fd).empty());
  ASSERT_EQ(::write(file, "y", 1), 1);
  got = events(fd);
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0], (std::pair<int, std::uint32_t>(wd, IN_MODIFY)));
  EXPECT_EQ(::unlink(path.c_str()), 0);
}

}  // namespace
}  // namespace ferry::live
