#include <fcntl.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

std::string own_name(const char* what) { return "/tmp/ferry-fan-" + std::to_string(::getpid()) + "-" + what; }

// Masks of the events that wait.
std::vector<std::uint64_t> events(int fd) {
  alignas(fanotify_event_metadata) char room[8192];
  std::vector<std::uint64_t> out;
  ssize_t n = ::read(fd, room, sizeof room);
  for (auto* event = reinterpret_cast<fanotify_event_metadata*>(room); FAN_EVENT_OK(event, n);
       event = FAN_EVENT_NEXT(event, n)) {
    out.push_back(event->mask);
    if (event->fd >= 0) {
      ::close(event->fd);
    }
  }
  return out;
}

LIVE_TEST_WITH(Fanotify, KeepsMarksAndIgnoredMasks, Options{.leave_running = false}) {
  const std::string watched = own_name("watched"), directory = own_name("dir");
  const int file = ::open(watched.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  ASSERT_EQ(::mkdir(directory.c_str(), 0700), 0);
  const int inside = ::open((directory + "/f").c_str(), O_RDWR | O_CREAT, 0600);
  const int fd = ::fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY | O_LARGEFILE);
  if (fd < 0 && errno == ENOSYS) {
    GTEST_SKIP() << "no fanotify";
  }
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, watched.c_str()), 0);
  ASSERT_EQ(::fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, AT_FDCWD, directory.c_str()), 0);
  ASSERT_EQ(::fanotify_mark(fd, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY,
                            AT_FDCWD, (directory + "/f").c_str()),
            0);
  checkpoint_here();
  EXPECT_TRUE(events(fd).empty());
  ASSERT_EQ(::write(inside, "x", 1), 1);
  EXPECT_TRUE(events(fd).empty()) << "ignored";
  ASSERT_EQ(::write(file, "x", 1), 1);
  EXPECT_EQ(events(fd), (std::vector<std::uint64_t>{FAN_MODIFY}));
  EXPECT_EQ(::unlink(watched.c_str()), 0);
  EXPECT_EQ(::unlink((directory + "/f").c_str()), 0);
  EXPECT_EQ(::rmdir(directory.c_str()), 0);
}

LIVE_TEST_WITH(Fanotify, RefusesUnreadEvents, {.refused = "events that were not read yet", .leave_running = false}) {
  const std::string watched = own_name("unread");
  const int file = ::open(watched.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  const int fd = ::fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK, O_RDONLY);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::fanotify_mark(fd, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, watched.c_str()), 0);
  ASSERT_EQ(::write(file, "x", 1), 1);
  checkpoint_here();
  EXPECT_EQ(events(fd), (std::vector<std::uint64_t>{FAN_MODIFY}));
  EXPECT_EQ(::unlink(watched.c_str()), 0);
}

}  // namespace
}  // namespace ferry::live
