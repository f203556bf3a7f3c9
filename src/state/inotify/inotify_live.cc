#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

// The source removes the watched directory at its end, before the copy would begin.
LIVE_TEST_WITH(Inotify, KeepsWatchesUnderTheirNumbers, Options{.leave_running = false}) {
  const std::string directory = "/tmp/ferry-inotify-" + std::to_string(::getpid());
  ASSERT_EQ(::mkdir(directory.c_str(), 0700), 0);
  const int fd = ::inotify_init1(IN_NONBLOCK);
  ASSERT_EQ(::inotify_add_watch(fd, "/tmp", IN_ATTRIB), 1);
  ASSERT_EQ(::inotify_rm_watch(fd, 1), 0);
  alignas(inotify_event) char room[4096];
  ASSERT_GT(::read(fd, room, sizeof room), 0) << "IN_IGNORED";
  const int wd = ::inotify_add_watch(fd, directory.c_str(), IN_CREATE | IN_ONLYDIR);
  ASSERT_EQ(wd, 2);
  checkpoint_here();
  EXPECT_EQ(::read(fd, room, sizeof room), -1) << "nothing has happened";
  const std::string file = directory + "/new";
  ::close(::open(file.c_str(), O_CREAT | O_WRONLY, 0600));
  ASSERT_GT(::read(fd, room, sizeof room), 0);
  const auto* event = reinterpret_cast<const inotify_event*>(room);
  EXPECT_EQ(event->wd, wd);
  EXPECT_STREQ(event->name, "new");
  ::unlink(file.c_str());
  ::rmdir(directory.c_str());
}

// The kernel leaves the watch of a group that was removed where it is.
LIVE_TEST_WITH(Inotify, KeepsTheNumberOfAWatchWhoseGroupIsGone, Options{.user_namespace = false}) {
  const std::string group = "/sys/fs/cgroup/pids/ferry-inotify-" + std::to_string(::getpid());
  if (::mkdir(group.c_str(), 0700) != 0) {
    GTEST_SKIP() << "no group can be made below /sys/fs/cgroup/pids";
  }
  const int fd = ::inotify_init1(IN_NONBLOCK);
  ASSERT_EQ(::inotify_add_watch(fd, "/tmp", IN_ATTRIB), 1);
  ASSERT_EQ(::inotify_add_watch(fd, (group + "/cgroup.procs").c_str(), IN_MODIFY), 2);
  ASSERT_EQ(::rmdir(group.c_str()), 0);
  checkpoint_here();
  alignas(inotify_event) char room[4096];
  EXPECT_EQ(::read(fd, room, sizeof room), -1) << "nothing has happened";
  EXPECT_EQ(::inotify_add_watch(fd, "/", IN_CREATE), 3);
  EXPECT_EQ(::inotify_rm_watch(fd, 1), 0);
}

}  // namespace
}  // namespace ferry::live
