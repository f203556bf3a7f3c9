// Trees whose processes live in several namespaces of a kind.
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <string>

#include "live/child.h"
#include "live/files.h"
#include "live/live.h"

namespace ferry::live {
namespace {

// Mounts of several namespaces below a user namespace are refused.
const Options kNoUserNamespace{.user_namespace = false};

void enter_playground() {
  if (::getpid() != 1) {  // in a pid namespace of its own the body has its mounts as well
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
  }
  ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  ASSERT_EQ(::mount("tmpfs", "/mnt", "tmpfs", 0, "mode=755"), 0);
}

LIVE_TEST_WITH(Nested, MountNamespacesKeepTheirOwnMounts, kNoUserNamespace) {
  enter_playground();
  ASSERT_EQ(::mkdir("/mnt/own", 0755), 0);
  ASSERT_EQ(::mkdir("/mnt/common", 0755), 0);
  ASSERT_EQ(::mount("tmpfs", "/mnt/common", "tmpfs", 0, nullptr), 0);
  Child child(
      [] {
        std::ofstream("/mnt/common/file") << "seen by both";
        if (::unshare(CLONE_NEWNS) != 0 || ::mount("tmpfs", "/mnt/own", "tmpfs", 0, nullptr) != 0) {
          return false;
        }
        std::ofstream("/mnt/own/file") << "the child's";
        return true;
      },
      [] {
        if (content_of("/mnt/own/file") != "the child's") {
          return 1;
        }
        std::ofstream("/mnt/common/answer") << "from the child";
        return content_of("/mnt/common/file") == "seen by both" ? 0 : 2;
      });

  checkpoint_here();

  EXPECT_EQ(content_of("/mnt/own/file"), "");
  EXPECT_EQ(content_of("/mnt/common/file"), "seen by both");
  EXPECT_EQ(child.verdict(), 0);
  EXPECT_EQ(content_of("/mnt/common/answer"), "from the child");
}

LIVE_TEST_WITH(Nested, MountNamespacesPropagateToEachOther, kNoUserNamespace) {
  enter_playground();
  for (const char* name : {"/mnt/shared", "/mnt/slave"}) {
    ASSERT_EQ(::mkdir(name, 0755), 0);
    ASSERT_EQ(::mount("tmpfs", name, "tmpfs", 0, nullptr), 0);
    ASSERT_EQ(::mkdir((std::string(name) + "/x").c_str(), 0755), 0);
    ASSERT_EQ(::mount(nullptr, name, nullptr, MS_SHARED, nullptr), 0);
  }
  Child child(
      [] { return ::unshare(CLONE_NEWNS) == 0 && ::mount(nullptr, "/mnt/slave", nullptr, MS_SLAVE, nullptr) == 0; },
      [] {
        if (content_of("/mnt/shared/x/mark") != "shared" || content_of("/mnt/slave/x/mark") != "slave") {
          return 1;
        }
        return ::umount2("/mnt/shared/x", 0) == 0 && ::umount2("/mnt/slave/x", 0) == 0 ? 0 : 2;
      });

  checkpoint_here();

  for (const char* name : {"shared", "slave"}) {
    const std::string at = std::string("/mnt/") + name + "/x";
    ASSERT_EQ(::mount("tmpfs", at.c_str(), "tmpfs", 0, nullptr), 0);
    std::ofstream(at + "/mark") << name;
  }
  EXPECT_EQ(child.verdict(), 0);
  EXPECT_EQ(content_of("/mnt/shared/x/mark"), "") << "the child's umount did not come here";
  EXPECT_EQ(content_of("/mnt/slave/x/mark"), "slave") << "the umount of a slave came to its master";
}

LIVE_TEST(Nested, UtsNamespacesKeepTheirNames) {
  ASSERT_EQ(::unshare(CLONE_NEWUTS), 0);
  ASSERT_EQ(::sethostname("outer", 5), 0);
  Child child([] { return ::unshare(CLONE_NEWUTS) == 0 && ::sethostname("inner", 5) == 0; },
              [] {
                utsname names{};
                return ::uname(&names) == 0 && std::string(names.nodename) == "inner" ? 0 : 1;
              });

  checkpoint_here();

  utsname names{};
  ASSERT_EQ(::uname(&names), 0);
  EXPECT_STREQ(names.nodename, "outer");
  EXPECT_EQ(child.verdict(), 0);
}

LIVE_TEST(Nested, NamespacesBoundToFilesStayBound) {
  enter_playground();
  ASSERT_EQ(::unshare(CLONE_NEWUTS), 0);
  ASSERT_EQ(::mknod("/mnt/uts", S_IFREG | 0600, 0), 0);
  ASSERT_EQ(::mount("/proc/self/ns/uts", "/mnt/uts", nullptr, MS_BIND, nullptr), 0);

  checkpoint_here();

  struct stat bound {};
  struct stat own {};
  ASSERT_EQ(::stat("/mnt/uts", &bound), 0);
  ASSERT_EQ(::stat("/proc/self/ns/uts", &own), 0);
  EXPECT_EQ(bound.st_ino, own.st_ino);
}

}  // namespace
}  // namespace ferry::live
