#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

struct Caps {
  __user_cap_data_struct low{}, high{};
};
Caps own_caps() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  Caps caps;
  ::syscall(SYS_capget, &header, &caps);
  return caps;
}
bool set_caps(const Caps& caps) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  return ::syscall(SYS_capset, &header, &caps) == 0;
}

LIVE_TEST(Creds, KeepsAnUnprivilegedUser) {
  const gid_t groups[] = {5, 42, 70000};
  ASSERT_EQ(::setgroups(3, groups), 0);
  ASSERT_EQ(::setresgid(1001, 1002, 1003), 0);
  ASSERT_EQ(::setresuid(2001, 2002, 2003), 0);
  checkpoint_here();
  uid_t u[3];
  gid_t g[3];
  ASSERT_EQ(::getresuid(&u[0], &u[1], &u[2]), 0);
  ASSERT_EQ(::getresgid(&g[0], &g[1], &g[2]), 0);
  EXPECT_EQ(u[0], 2001U);
  EXPECT_EQ(u[1], 2002U);
  EXPECT_EQ(u[2], 2003U);
  EXPECT_EQ(g[0], 1001U);
  EXPECT_EQ(g[1], 1002U);
  EXPECT_EQ(g[2], 1003U);
  EXPECT_NE(::setuid(0), 0) << "it cannot become root again";
}

LIVE_TEST(Creds, KeepsTheFilesystemIds) {
  ::setfsgid(77);
  ::setfsuid(88);
  checkpoint_here();
  EXPECT_EQ(::setfsgid(static_cast<gid_t>(-1)), 77);
  EXPECT_EQ(::setfsuid(static_cast<uid_t>(-1)), 88);
}

LIVE_TEST(Creds, KeepsAContainersCapabilities) {
  // As Docker sets them up: a small bounding set, effective and permitted the same, then another user.
  for (int cap : {CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN, CAP_SYS_NICE}) {
    ASSERT_EQ(::prctl(PR_CAPBSET_DROP, cap), 0);
  }
  Caps caps = own_caps();
  caps.low.permitted = caps.low.effective = 1U << CAP_CHOWN | 1U << CAP_SETUID | 1U << CAP_NET_BIND_SERVICE;
  caps.high.permitted = caps.high.effective = 0;
  caps.low.inheritable = 1U << CAP_NET_BIND_SERVICE;
  ASSERT_TRUE(set_caps(caps));
  ASSERT_EQ(::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_BIND_SERVICE, 0, 0), 0);
  checkpoint_here();
  const Caps got = own_caps();
  EXPECT_EQ(got.low.permitted, caps.low.permitted);
  EXPECT_EQ(got.low.effective, caps.low.effective);
  EXPECT_EQ(got.low.inheritable, caps.low.inheritable);
  EXPECT_EQ(::prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN), 0);
  EXPECT_EQ(::prctl(PR_CAPBSET_READ, CAP_CHOWN), 1);
  EXPECT_EQ(::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_NET_BIND_SERVICE, 0, 0), 1);
}

LIVE_TEST(Creds, KeepsSecurebitsAndNoNewPrivs) {
  const unsigned long bits =
      SECBIT_NO_SETUID_FIXUP | SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE;
  ASSERT_EQ(::prctl(PR_SET_SECUREBITS, bits), 0);
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  checkpoint_here();
  EXPECT_EQ(::prctl(PR_GET_SECUREBITS), static_cast<int>(bits));
  EXPECT_EQ(::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

LIVE_TEST(Creds, ThreadsMayDiffer) {
  std::atomic<int> stage{0};
  uid_t user = 0;
  std::thread thread([&] {
    ::syscall(SYS_setresuid, 3001, 3001, 3001);  // this thread's alone: not through the C library
    stage = 1;
    while (stage == 1) {
      ::sched_yield();
    }
    user = static_cast<uid_t>(::syscall(SYS_geteuid));
  });
  while (stage == 0) {
    ::sched_yield();
  }
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_EQ(user, 3001U);
  EXPECT_EQ(::geteuid(), 0U);
}

LIVE_TEST(Creds, KeepsDumpable) {
  ASSERT_EQ(::prctl(PR_SET_DUMPABLE, 0), 0);
  checkpoint_here();
  EXPECT_EQ(::prctl(PR_GET_DUMPABLE), 0);
}

LIVE_TEST(Creds, AUserWhoIsDumpableStaysSo) {
  ASSERT_EQ(::setresuid(2001, 2001, 2001), 0);
  ASSERT_EQ(::prctl(PR_SET_DUMPABLE, 1), 0);
  checkpoint_here();
  EXPECT_EQ(::prctl(PR_GET_DUMPABLE), 1);
}

LIVE_TEST(Creds, AUserKeepsWhatRootHadLocked) {
  constexpr std::size_t kSize = 32 * 4096;
  void* memory = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  ASSERT_EQ(::mlock(memory, kSize), 0);
  ASSERT_EQ(::setresuid(2001, 2001, 2001), 0);
  checkpoint_here();
  std::ifstream file("/proc/self/status");
  std::string line;
  while (std::getline(file, line) && line.rfind("VmLck:", 0) != 0) {
  }
  EXPECT_NE(line.find(" 128 kB"), std::string::npos) << line;
}

LIVE_TEST(Creds, EveryThreadHasItsOwnFiveSets) {
  std::atomic<int> stage{0};
  Caps caps{};
  bool bounded = false, raised = false;
  uid_t uid = 0;
  std::thread thread([&] {
    Caps wanted = own_caps();
    wanted.low.inheritable |= 1U << CAP_CHOWN | 1U << CAP_KILL;
    bool done = set_caps(wanted);
    done = done && ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) == 0;
    done = done && ::prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT) == 0;
    wanted.low.effective &= ~(1U << CAP_NET_RAW);
    wanted.low.permitted &= ~(1U << CAP_SYS_RAWIO);
    wanted.low.effective &= ~(1U << CAP_SYS_RAWIO);
    done = done && set_caps(wanted);
    done = done && ::syscall(SYS_setresuid, 5, 0, 0) == 0;
    stage = done ? 1 : 3;
    while (stage == 1) {
      ::sched_yield();
    }
    caps = own_caps();
    bounded = ::prctl(PR_CAPBSET_READ, CAP_SYS_BOOT) == 0;
    raised = ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0) == 1;
    uid = static_cast<uid_t>(::syscall(SYS_getuid));
  });
  while (stage == 0) {
    ::sched_yield();
  }
  ASSERT_EQ(stage, 1);
  const Caps mine = own_caps();
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_EQ(uid, 5U);
  EXPECT_TRUE(bounded);
  EXPECT_TRUE(raised);
  EXPECT_EQ(caps.low.inheritable & (1U << CAP_CHOWN | 1U << CAP_KILL), 1U << CAP_CHOWN | 1U << CAP_KILL);
  EXPECT_EQ(caps.low.effective & (1U << CAP_NET_RAW | 1U << CAP_SYS_RAWIO), 0U);
  EXPECT_NE(caps.low.permitted & 1U << CAP_NET_RAW, 0U);
  EXPECT_EQ(caps.low.permitted & 1U << CAP_SYS_RAWIO, 0U);
  const Caps now = own_caps();
  EXPECT_EQ(now.low.permitted, mine.low.permitted);
  EXPECT_EQ(::prctl(PR_CAPBSET_READ, CAP_SYS_BOOT), 1);
  EXPECT_EQ(::getuid(), 0U);
}

}  // namespace
}  // namespace ferry::live
