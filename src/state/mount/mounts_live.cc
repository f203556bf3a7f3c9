// Mounts of every make, in a mount namespace of the body's own.
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <sstream>
#include <string>

#include "live/files.h"
#include "live/live.h"

namespace ferry::live {
namespace {

bool make_directory(const std::string& path) { return ::mkdir(path.c_str(), 0755) == 0; }
bool make_file(const std::string& path) { return ::mknod(path.c_str(), S_IFREG | 0644, 0) == 0; }
bool mount_tmpfs(const std::string& path, const char* options = "mode=755") {
  return ::mount("tmpfs", path.c_str(), "tmpfs", 0, options) == 0;
}
bool bind_to(const std::string& from, const std::string& to) {
  return ::mount(from.c_str(), to.c_str(), nullptr, MS_BIND, nullptr) == 0;
}
bool change(const std::string& path, unsigned long flags) {
  return ::mount(nullptr, path.c_str(), nullptr, flags, nullptr) == 0;
}
bool exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

// A namespace of our own with an empty tmpfs on /mnt, out of sight of everybody else.
void enter_playground() {
  if (::getpid() != 1) {  // in a pid namespace of its own the body has its mounts as well
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
  }
  ASSERT_TRUE(change("/", MS_REC | MS_PRIVATE));
  ASSERT_TRUE(mount_tmpfs("/mnt"));
}

// The optional fields of mountinfo ("shared:5 master:2") of the mount on a path.
std::string peers_of(const std::string& path) {
  std::ifstream file("/proc/self/mountinfo");
  std::string line, found;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string word, point;
    for (int i = 0; i < 5; ++i) {
      words >> point;
    }
    words >> word;
    if (point == path) {
      found.clear();
      while (words >> word && word != "-") {
        found += word + " ";
      }
    }
  }
  return found;
}

LIVE_TEST(Mounts, KeepFlagsOfMountAndSuperblock) {
  enter_playground();
  for (const char* name : {"/mnt/ro", "/mnt/sbro", "/mnt/strict", "/mnt/nothing"}) {
    ASSERT_TRUE(make_directory(name));
  }
  ASSERT_EQ(::mount("one", "/mnt/ro", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=1777,uid=12,gid=34,nr_inodes=50"),
            0);
  ASSERT_TRUE(change("/mnt/ro", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOEXEC | MS_NOSUID));
  ASSERT_EQ(::mount("two", "/mnt/sbro", "tmpfs", 0, nullptr), 0);
  put("/mnt/sbro/kept", "in a read-only file system");
  ASSERT_TRUE(change("/mnt/sbro", MS_REMOUNT | MS_RDONLY));
  ASSERT_EQ(::mount("three", "/mnt/strict", "tmpfs", MS_STRICTATIME | MS_SYNCHRONOUS, nullptr), 0);
  ASSERT_EQ(::mount("four", "/mnt/nothing", "tmpfs", MS_NOATIME | MS_NODIRATIME | MS_LAZYTIME, nullptr), 0);

  checkpoint_here();

  struct statvfs v {};
  ASSERT_EQ(::statvfs("/mnt/ro", &v), 0);
  constexpr unsigned long kKept = ST_RDONLY | ST_NOEXEC | ST_NOSUID;
  EXPECT_EQ(v.f_flag & (kKept | ST_NODEV), kKept);
  struct stat st {};
  ASSERT_EQ(::stat("/mnt/ro", &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 01777U);
  EXPECT_EQ(st.st_uid, 12U);
  EXPECT_EQ(content_of("/mnt/sbro/kept"), "in a read-only file system");
  EXPECT_LT(::open("/mnt/sbro/new", O_CREAT | O_WRONLY | O_CLOEXEC, 0600), 0);
  EXPECT_EQ(errno, EROFS);
}

LIVE_TEST_WITH(Mounts, KeepWhatLiesBelowOtherMounts, {.user_namespace = false}) {
  enter_playground();
  ASSERT_TRUE(make_directory("/mnt/a") && make_directory("/mnt/a/b"));
  put("/mnt/a/ground", "ground");
  ASSERT_TRUE(mount_tmpfs("/mnt/a/b"));
  put("/mnt/a/b/first", "first");
  ASSERT_TRUE(mount_tmpfs("/mnt/a"));
  put("/mnt/a/second", "second");
  ASSERT_TRUE(mount_tmpfs("/mnt/a"));
  put("/mnt/a/third", "third");

  checkpoint_here();

  EXPECT_EQ(content_of("/mnt/a/third"), "third");
  ASSERT_EQ(::umount2("/mnt/a", 0), 0);
  EXPECT_EQ(content_of("/mnt/a/second"), "second");
  ASSERT_EQ(::umount2("/mnt/a", 0), 0);
  EXPECT_EQ(content_of("/mnt/a/ground"), "ground");
  EXPECT_EQ(content_of("/mnt/a/b/first"), "first");
}

LIVE_TEST(Mounts, BindEveryKindOfFile) {
  enter_playground();
  ASSERT_TRUE(make_directory("/mnt/from") && make_directory("/mnt/from/sub") && make_directory("/mnt/to"));
  put("/mnt/from/file", "bound");
  put("/mnt/from/sub/inner", "deep");
  ASSERT_EQ(::mkfifo("/mnt/from/fifo", 0640), 0);
  ASSERT_EQ(::mknod("/mnt/from/device", S_IFCHR | 0666, makedev(1, 5)), 0);
  ASSERT_EQ(::mknod("/mnt/from/socket", S_IFSOCK | 0604, 0), 0);
  for (const char* name : {"file", "fifo", "device", "socket"}) {
    ASSERT_TRUE(make_file(std::string("/mnt/to/") + name));
    ASSERT_TRUE(bind_to(std::string("/mnt/from/") + name, std::string("/mnt/to/") + name)) << name;
  }
  ASSERT_TRUE(make_directory("/mnt/to/sub"));
  ASSERT_TRUE(bind_to("/mnt/from/sub", "/mnt/to/sub"));
  ASSERT_TRUE(change("/mnt/to/sub", MS_REMOUNT | MS_BIND | MS_RDONLY));
  ASSERT_TRUE(make_file("/mnt/to/passwd"));
  ASSERT_TRUE(bind_to("/etc/passwd", "/mnt/to/passwd"));

  checkpoint_here();

  struct stat a {};
  struct stat b {};
  for (const char* name : {"file", "fifo", "device", "socket", "sub"}) {
    ASSERT_EQ(::stat((std::string("/mnt/from/") + name).c_str(), &a), 0);
    ASSERT_EQ(::stat((std::string("/mnt/to/") + name).c_str(), &b), 0);
    EXPECT_EQ(a.st_ino, b.st_ino) << name;
    EXPECT_EQ(a.st_mode, b.st_mode) << name;
    EXPECT_EQ(a.st_dev, b.st_dev) << name;
  }
  EXPECT_EQ(content_of("/mnt/to/file"), "bound");
  EXPECT_EQ(content_of("/mnt/to/sub/inner"), "deep");
  EXPECT_NE(content_of("/mnt/to/passwd").find("root:"), std::string::npos);
  EXPECT_NE(::access("/mnt/to/sub/inner", W_OK), 0);
}

LIVE_TEST(Mounts, BindFilesAndDirectoriesThatWereDeleted) {
  enter_playground();
  put("/mnt/gone", "deleted, but mounted");
  ASSERT_EQ(::chmod("/mnt/gone", 0640), 0);
  ASSERT_TRUE(make_directory("/mnt/gone.d"));
  ASSERT_TRUE(make_file("/mnt/file") && make_directory("/mnt/dir"));
  ASSERT_TRUE(bind_to("/mnt/gone", "/mnt/file") && bind_to("/mnt/gone.d", "/mnt/dir"));
  ASSERT_EQ(::unlink("/mnt/gone"), 0);
  ASSERT_EQ(::rmdir("/mnt/gone.d"), 0);

  checkpoint_here();

  EXPECT_EQ(content_of("/mnt/file"), "deleted, but mounted");
  struct stat st {};
  ASSERT_EQ(::stat("/mnt/file", &st), 0);
  EXPECT_EQ(st.st_nlink, 0U);
  EXPECT_EQ(st.st_mode & 07777, 0640U);
  EXPECT_FALSE(exists("/mnt/gone"));
  EXPECT_FALSE(make_directory("/mnt/dir/new"));
}

LIVE_TEST_WITH(Mounts, PropagateAsBefore, {.user_namespace = false}) {
  enter_playground();
  for (const char* name : {"shared", "peer", "slave", "both", "below", "private", "unbindable"}) {
    ASSERT_TRUE(make_directory(std::string("/mnt/") + name));
  }
  ASSERT_TRUE(mount_tmpfs("/mnt/shared"));
  for (const char* name : {"x", "y", "z", "w"}) {
    ASSERT_TRUE(make_directory(std::string("/mnt/shared/") + name));
  }
  ASSERT_TRUE(change("/mnt/shared", MS_SHARED));
  ASSERT_TRUE(bind_to("/mnt/shared", "/mnt/peer"));
  ASSERT_TRUE(bind_to("/mnt/shared", "/mnt/slave") && change("/mnt/slave", MS_SLAVE));
  ASSERT_TRUE(bind_to("/mnt/shared", "/mnt/both") && change("/mnt/both", MS_SLAVE) && change("/mnt/both", MS_SHARED));
  ASSERT_TRUE(bind_to("/mnt/both", "/mnt/below") && change("/mnt/below", MS_SLAVE));
  ASSERT_TRUE(bind_to("/mnt/shared", "/mnt/private") && change("/mnt/private", MS_PRIVATE));
  ASSERT_TRUE(mount_tmpfs("/mnt/unbindable") && change("/mnt/unbindable", MS_UNBINDABLE));

  checkpoint_here();

  ASSERT_TRUE(mount_tmpfs("/mnt/peer/x"));
  put("/mnt/peer/x/mark", "x");
  for (const char* name : {"shared", "slave", "both", "below"}) {
    EXPECT_EQ(content_of(std::string("/mnt/") + name + "/x/mark"), "x") << name;
  }
  EXPECT_FALSE(exists("/mnt/private/x/mark"));
  ASSERT_TRUE(mount_tmpfs("/mnt/slave/y"));
  put("/mnt/slave/y/mark", "y");
  EXPECT_FALSE(exists("/mnt/shared/y/mark"));
  ASSERT_TRUE(mount_tmpfs("/mnt/both/z"));
  put("/mnt/both/z/mark", "z");
  EXPECT_EQ(content_of("/mnt/below/z/mark"), "z");
  EXPECT_FALSE(exists("/mnt/shared/z/mark"));
  EXPECT_FALSE(bind_to("/mnt/unbindable", "/mnt/private/w"));
}

LIVE_TEST(Mounts, AreStillPeersWhenNoneShowsWhatTheOtherDoes) {
  enter_playground();
  for (const char* name : {"whole", "a", "b"}) {
    ASSERT_TRUE(make_directory(std::string("/mnt/") + name));
  }
  ASSERT_TRUE(mount_tmpfs("/mnt/whole") && change("/mnt/whole", MS_SHARED));
  ASSERT_TRUE(make_directory("/mnt/whole/left") && make_directory("/mnt/whole/right"));
  put("/mnt/whole/left/file", "left");
  ASSERT_TRUE(bind_to("/mnt/whole/left", "/mnt/a") && bind_to("/mnt/whole/right", "/mnt/b"));

  checkpoint_here();

  EXPECT_EQ(content_of("/mnt/a/file"), "left");
  EXPECT_EQ(peers_of("/mnt/a"), peers_of("/mnt/b"));
  EXPECT_EQ(peers_of("/mnt/a"), peers_of("/mnt/whole"));
  EXPECT_NE(peers_of("/mnt/a"), "");
  ASSERT_TRUE(change("/mnt/whole", MS_PRIVATE));

  checkpoint_here();  // now none of the peers shows the whole of it

  EXPECT_EQ(peers_of("/mnt/a"), peers_of("/mnt/b"));
  EXPECT_NE(peers_of("/mnt/a"), "");
}

LIVE_TEST(Mounts, KeepAnOverlayMadeInside) {
  enter_playground();
  for (const char* name : {"lower", "upper", "work", "merged"}) {
    ASSERT_TRUE(make_directory(std::string("/mnt/") + name));
  }
  put("/mnt/lower/below", "from below");
  put("/mnt/lower/hidden", "to be deleted");
  ASSERT_EQ(
      ::mount("ovl", "/mnt/merged", "overlay", MS_NODEV, "lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work"),
      0);
  put("/mnt/merged/above", "from above");
  ASSERT_EQ(::unlink("/mnt/merged/hidden"), 0);

  checkpoint_here();

  EXPECT_EQ(content_of("/mnt/merged/below"), "from below");
  EXPECT_EQ(content_of("/mnt/merged/above"), "from above");
  EXPECT_FALSE(exists("/mnt/merged/hidden"));
  EXPECT_EQ(content_of("/mnt/lower/hidden"), "to be deleted");
  put("/mnt/merged/new", "written after");
  EXPECT_EQ(content_of("/mnt/upper/new"), "written after");
}

LIVE_TEST(Mounts, KeepTheKernelsOwnFileSystems) {
  enter_playground();
  for (const char* name : {"proc", "proc2", "sys", "pts", "mq"}) {
    ASSERT_TRUE(make_directory(std::string("/mnt/") + name));
  }
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  ASSERT_EQ(::mount("proc", "/mnt/proc", "proc", MS_NOSUID, "hidepid=2,gid=5"), 0);
  ASSERT_EQ(::mount("proc", "/mnt/proc2", "proc", MS_RDONLY, "subset=pid"), 0);
  ASSERT_EQ(::mount("sysfs", "/mnt/sys", "sysfs", MS_RDONLY, nullptr), 0);
  ASSERT_EQ(::mount("devpts", "/mnt/pts", "devpts", 0, "newinstance,ptmxmode=0620,mode=0600,gid=7,max=9"), 0);
  ASSERT_EQ(::mount("mqueue", "/mnt/mq", "mqueue", 0, nullptr), 0);

  checkpoint_here();

  struct stat st {};
  ASSERT_EQ(::stat("/mnt/pts/ptmx", &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0620U);
  EXPECT_FALSE(exists("/mnt/proc2/sys"));
  EXPECT_TRUE(exists("/mnt/sys/class"));
  char link[32] = {};
  ASSERT_GT(::readlink("/mnt/proc/self", link, sizeof link - 1), 0);
  EXPECT_EQ(std::to_string(::getpid()), link);
}

LIVE_TEST(Mounts, KeepEverythingInATmpfs) {
  enter_playground();
  put("/mnt/file", "content");
  ASSERT_EQ(::link("/mnt/file", "/mnt/hard"), 0);
  ASSERT_EQ(::setxattr("/mnt/file", "trusted.mark", "value", 5, 0), 0);
  ASSERT_EQ(::symlink("file", "/mnt/soft"), 0);
  ASSERT_EQ(::mkfifo("/mnt/fifo", 0604), 0);
  ASSERT_EQ(::mknod("/mnt/block", S_IFBLK | 0600, makedev(7, 200)), 0);
  ASSERT_EQ(::mknod("/mnt/dead", S_IFSOCK | 0755, 0), 0);
  const int listening = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{AF_UNIX, "/mnt/live"};
  ASSERT_EQ(::bind(listening, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(listening, 1), 0);
  const int sparse = ::open("/mnt/sparse", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  ASSERT_EQ(::pwrite(sparse, "end", 3, 8 << 20), 3);
  const int lost = ::open("/mnt/lost", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  ASSERT_EQ(::write(lost, "no name", 7), 7);
  ASSERT_EQ(::unlink("/mnt/lost"), 0);

  checkpoint_here();

  struct stat a {};
  struct stat b {};
  ASSERT_EQ(::stat("/mnt/soft", &a), 0);
  ASSERT_EQ(::stat("/mnt/hard", &b), 0);
  EXPECT_EQ(a.st_ino, b.st_ino);
  char value[16] = {};
  EXPECT_EQ(::getxattr("/mnt/hard", "trusted.mark", value, sizeof value), 5);
  ASSERT_EQ(::lstat("/mnt/fifo", &a), 0);
  EXPECT_EQ(a.st_mode, S_IFIFO | 0604U);
  ASSERT_EQ(::lstat("/mnt/block", &a), 0);
  EXPECT_EQ(a.st_rdev, makedev(7, 200));
  ASSERT_EQ(::lstat("/mnt/dead", &a), 0);
  EXPECT_EQ(a.st_mode, S_IFSOCK | 0755U);
  const int client = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  EXPECT_EQ(::connect(client, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::fstat(sparse, &a), 0);
  EXPECT_EQ(a.st_size, (8 << 20) + 3);
  EXPECT_LT(a.st_blocks, 100);
  EXPECT_EQ(::pread(lost, value, sizeof value, 0), 7);
}

// A namespace whose mounts still hang on those of the host, as unshare(2) makes it.
LIVE_TEST_WITH(Mounts, StaySlavesOfTheHosts, Options{.pid_namespace = false}) {
  ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
  ASSERT_TRUE(change("/", MS_REC | MS_SLAVE));
  const std::string before = peers_of("/");
  checkpoint_here();
  EXPECT_EQ(peers_of("/"), before);
}

LIVE_TEST_WITH(Mounts, AreRefusedByNameForAnAutomountPoint, Options{.refused = "automount point"}) {
  enter_playground();
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  ASSERT_TRUE(make_directory("/mnt/auto"));
  const std::string options =
      "fd=" + std::to_string(ends[1]) + ",pgrp=" + std::to_string(::getpgrp()) + ",minproto=5,maxproto=5,indirect";
  if (::mount("test", "/mnt/auto", "autofs", 0, options.c_str()) != 0) {
    GTEST_SKIP() << "this kernel has no autofs";
  }
  checkpoint_here();
  EXPECT_TRUE(exists("/mnt/auto"));
}

}  // namespace
}  // namespace ferry::live
