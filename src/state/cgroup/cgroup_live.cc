// Groups made by the body itself, in whatever hierarchies this host has.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sstream>
#include <string>

#include "live/files.h"
#include "live/live.h"
#include "live/other_thread.h"

namespace ferry::live {
namespace {

// A group of this test's own, removed with the object.
class Group {
 public:
  explicit Group(std::string path) : path_(std::move(path)) { EXPECT_EQ(::mkdir(path_.c_str(), 0755), 0) << path_; }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;
  ~Group() {
    const std::string parent = path_.substr(0, path_.rfind('/'));
    (void)put(parent + "/cgroup.procs", std::to_string(::getpid()));
    ::rmdir(path_.c_str());
  }
  [[nodiscard]] std::string operator/(const char* file) const { return path_ + "/" + file; }

 private:
  std::string path_;
};

constexpr const char* kPids = "/sys/fs/cgroup/pids";
constexpr const char* kUnified = "/sys/fs/cgroup/unified";

std::string name_of_test(const char* base) { return std::string(base) + "/ferry-live-" + std::to_string(::getpid()); }

std::string line_of(const std::string& file, const std::string& start) {
  std::istringstream lines(content_of(file));
  for (std::string line; std::getline(lines, line);) {
    if (line.find(start) != std::string::npos) {
      return line;
    }
  }
  return "";
}

const Options kHost{.pid_namespace = false, .leave_running = false};

// The body in `outer`, a thread of it in the group below; `threads` is the file that takes threads there, and
// `hierarchy` how /proc names the hierarchy.
void keep_a_thread_in_its_group(const Group& outer, const Group& inner, const char* threads, const char* hierarchy) {
  ASSERT_TRUE(put(outer / "cgroup.procs", std::to_string(::getpid())));
  OtherThread other;
  ASSERT_TRUE(put(inner / threads, std::to_string(other.tid())));
  const std::string mine = line_of("/proc/self/cgroup", hierarchy);

  checkpoint_here();

  EXPECT_EQ(line_of("/proc/self/cgroup", hierarchy), mine);
  EXPECT_EQ(line_of("/proc/self/task/" + std::to_string(other.tid()) + "/cgroup", hierarchy), mine + "/inner");
}

LIVE_TEST_WITH(Cgroup, KeepsThreadsInGroupsOfTheirOwn, kHost) {
  if (::access(kPids, F_OK) != 0) {
    GTEST_SKIP() << "this host has no v1 hierarchy of pids";
  }
  const Group outer(name_of_test(kPids));
  const Group inner(outer / "inner");
  keep_a_thread_in_its_group(outer, inner, "tasks", ":pids:");
}

LIVE_TEST_WITH(Cgroup, KeepsThreadedGroupsOfVersionTwo, kHost) {
  if (::access(kUnified, F_OK) != 0) {
    GTEST_SKIP() << "this host has no unified hierarchy beside the others";
  }
  const Group outer(name_of_test(kUnified));
  const Group inner(outer / "inner");
  ASSERT_TRUE(put(inner / "cgroup.type", "threaded"));
  keep_a_thread_in_its_group(outer, inner, "cgroup.threads", "0::");
}

// A child with a cgroup namespace whose root is a group of its own.
LIVE_TEST_WITH(Cgroup, KeepsANestedNamespace, kHost) {
  if (::access(kUnified, F_OK) != 0) {
    GTEST_SKIP() << "this host has no unified hierarchy beside the others";
  }
  const Group outer(name_of_test(kUnified));
  const Group inner(outer / "inner");
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte = put(outer / "cgroup.procs", std::to_string(::getpid())) && ::unshare(CLONE_NEWCGROUP) == 0 &&
                        put(inner / "cgroup.procs", std::to_string(::getpid()))
                    ? 'y'
                    : 'n';
    if (::write(ends[1], &byte, 1) != 1 || ::read(ends[1], &byte, 1) != 1) {
      ::_exit(90);
    }
    ::_exit(line_of("/proc/self/cgroup", "0::") == "0::/inner" ? 0 : 1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ends[0], &byte, 1), 1);
  ASSERT_EQ(byte, 'y');

  checkpoint_here();

  ASSERT_EQ(::write(ends[0], "j", 1), 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// Mounts of both versions, as a container with a cgroup namespace has them.
LIVE_TEST_WITH(Cgroup, KeepsMountsOfItsOwnNamespace, kHost) {
  if (::access(kUnified, F_OK) != 0 || ::access(kPids, F_OK) != 0) {
    GTEST_SKIP() << "this host has not both versions";
  }
  const Group two(name_of_test(kUnified));
  const Group one(name_of_test(kPids));
  ASSERT_TRUE(put(one / "cgroup.procs", std::to_string(::getpid())));
  ASSERT_TRUE(put(two / "cgroup.procs", std::to_string(::getpid())));
  ASSERT_EQ(::unshare(CLONE_NEWCGROUP | CLONE_NEWNS), 0);
  ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  ASSERT_EQ(::mount("tmpfs", "/mnt", "tmpfs", 0, nullptr), 0);
  ASSERT_EQ(::mkdir("/mnt/one", 0755), 0);
  ASSERT_EQ(::mkdir("/mnt/two", 0755), 0);
  ASSERT_EQ(::mount("cgroup", "/mnt/one", "cgroup", 0, "pids"), 0);
  ASSERT_EQ(::mount("cgroup2", "/mnt/two", "cgroup2", 0, nullptr), 0);

  checkpoint_here();

  const std::string me = std::to_string(::getpid()) + "\n";
  EXPECT_EQ(content_of("/mnt/one/cgroup.procs"), me);
  EXPECT_EQ(content_of("/mnt/two/cgroup.procs"), me);
}

}  // namespace
}  // namespace ferry::live
