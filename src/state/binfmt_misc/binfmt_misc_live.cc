// Handlers of binfmt_misc, registered by a program in a mount namespace of its own.
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "live/files.h"
#include "live/live.h"

namespace ferry::live {
namespace {

const std::string kDirectory = "/mnt/handlers/";

// The host's handlers are everybody's: what a body registers there, it takes away again.
struct Handler {
  explicit Handler(const std::string& name, const std::string& registration) : path(kDirectory + name) {
    EXPECT_TRUE(put(kDirectory + "register", registration)) << registration;
  }
  ~Handler() { put(path, "-1"); }
  Handler(const Handler&) = delete;
  Handler& operator=(const Handler&) = delete;
  const std::string path;
};

void enter_playground() {
  if (::getpid() != 1) {  // in a pid namespace of its own the body has its mounts as well
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
  }
  ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  ASSERT_EQ(::mount("tmpfs", "/mnt", "tmpfs", 0, "mode=755"), 0);
  ASSERT_EQ(::mkdir(kDirectory.c_str(), 0755), 0);
  ASSERT_EQ(::mount("binfmt_misc", kDirectory.c_str(), "binfmt_misc", 0, nullptr), 0);
}

int run(const std::string& program) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl(program.c_str(), program.c_str(), nullptr);
    ::_exit(111);
  }
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

LIVE_TEST(BinfmtMisc, KeepsHandlers) {
  enter_playground();
  // Names that only this test has: the handlers may be the host's.
  const std::string tag = "ferry" + std::to_string(::getppid()) + "x";
  const Handler by_name(tag + "name", ":" + tag + "name:E::" + tag + "::/bin/true:");
  const Handler by_pattern(tag + "pattern", "," + tag + "pattern,M,1,\\x46\\x00ry,\\xff\\x00\\xff\\xff,/bin/false,OC");
  const Handler disabled(tag + "disabled", ":" + tag + "disabled:E::" + tag + "off::/bin/true:F");
  ASSERT_TRUE(put(disabled.path, "0"));
  const std::string program = "/mnt/program." + tag;
  ASSERT_TRUE(put(program, "no program\n"));
  ASSERT_EQ(::chmod(program.c_str(), 0755), 0);
  ASSERT_EQ(run(program), 0);
  // The host's switch is nobody's to turn; that of a user namespace of one's own is kept.
  const bool own = content_of("/proc/self/uid_map") != "         0          0 4294967295\n";
  if (own) {
    ASSERT_TRUE(put(kDirectory + "status", "0"));
    ASSERT_EQ(run(program), 111);
  }
  const std::string texts[] = {content_of(by_name.path), content_of(by_pattern.path), content_of(disabled.path)};

  checkpoint_here();

  EXPECT_EQ(content_of(by_name.path), texts[0]);
  EXPECT_EQ(content_of(by_pattern.path), texts[1]);
  EXPECT_EQ(content_of(disabled.path), texts[2]);
  EXPECT_NE(texts[1].find("magic 46007279"), std::string::npos) << texts[1];
  EXPECT_NE(texts[2].find("disabled"), std::string::npos) << texts[2];
  if (own) {
    EXPECT_EQ(content_of(kDirectory + "status"), "disabled\n");
    EXPECT_EQ(run(program), 111);
    ASSERT_TRUE(put(kDirectory + "status", "1"));
  }
  EXPECT_EQ(run(program), 0);
}

LIVE_TEST_WITH(BinfmtMisc, IsRefusedByNameWhereItIsHidden, Options{.refused = "something is mounted over"}) {
  enter_playground();
  ASSERT_EQ(::mount("tmpfs", kDirectory.c_str(), "tmpfs", 0, nullptr), 0);
  checkpoint_here();
  ASSERT_EQ(::umount(kDirectory.c_str()), 0);
  EXPECT_EQ(content_of(kDirectory + "status"), "enabled\n");
}

}  // namespace
}  // namespace ferry::live
