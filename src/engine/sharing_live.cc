// Processes that share what is otherwise a process's own, and children that end in another way than fork(2)'s.
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <atomic>
#include <thread>

#include "live/family.h"
#include "live/live.h"

namespace ferry::live {
namespace {

// clone(2) that returns in the child on a copy of the stack, as fork(2) does.
pid_t clone_to(unsigned long flags) {
  return static_cast<pid_t>(::syscall(SYS_clone, flags, nullptr, nullptr, nullptr, 0UL));
}

LIVE_TEST(Tree, ChildrenMayShareTheDescriptorTable) {
  const Family family;
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = clone_to(CLONE_FILES | SIGCHLD);
  if (child == 0) {
    family.tell(::getpid());
    family.wait();
    ::_exit(::dup2(ends[1], 77) == 77 ? 0 : 1);
  }
  ASSERT_EQ(family.next_number(), child);
  checkpoint_here();
  family.go();
  EXPECT_EQ(Family::end_of(child), 0);
  EXPECT_EQ(::write(77, "x", 1), 1) << "what the child opened is not in our table";
  char byte = 0;
  EXPECT_EQ(::read(ends[0], &byte, 1), 1);
}

LIVE_TEST(Tree, ChildrenMayShareTheWorkingDirectory) {
  const Family family;
  ASSERT_EQ(::chdir("/usr"), 0);
  ::umask(022);
  const pid_t child = clone_to(CLONE_FS | SIGCHLD);
  if (child == 0) {
    family.stay([] {
      ::umask(057);
      return ::chdir("/etc") == 0;
    });
  }
  ASSERT_EQ(family.next_number(), child);
  checkpoint_here();
  char path[64] = {};
  ASSERT_NE(::getcwd(path, sizeof path), nullptr);
  EXPECT_STREQ(path, "/usr");
  family.go();
  EXPECT_EQ(Family::end_of(child), 0);
  ASSERT_NE(::getcwd(path, sizeof path), nullptr);
  EXPECT_STREQ(path, "/etc");
  EXPECT_EQ(::umask(0), static_cast<mode_t>(057));
}

std::atomic<int> told{0};

LIVE_TEST(Tree, TheSignalOfAChildsEndIsKept) {
  struct sigaction action {};
  action.sa_handler = [](int) { ++told; };
  ASSERT_EQ(::sigaction(SIGUSR1, &action, nullptr), 0);
  const Family family;
  const pid_t child = clone_to(SIGUSR1);
  if (child == 0) {
    family.stay([] { return true; });
  }
  ASSERT_EQ(family.next_number(), child);
  const pid_t silent = clone_to(0);
  if (silent == 0) {
    family.stay([] { return true; });
  }
  ASSERT_EQ(family.next_number(), silent);
  checkpoint_here();
  EXPECT_EQ(told, 0);
  family.go(2);
  EXPECT_EQ(Family::end_of(child, __WALL), 0);
  EXPECT_EQ(Family::end_of(silent, __WCLONE), 0);
  EXPECT_EQ(told, 1);
}

LIVE_TEST_WITH(Tree, RefusesProcessesThatShareTheirMemory,
               Options{.refused = "are processes that share their memory"}) {
  const Family family;
  alignas(16) static char stack[64 * 1024];
  static const Family* shared = &family;
  const pid_t child = ::clone(
      [](void*) {
        shared->tell(1);
        shared->wait();
        ::_exit(0);
        return 0;
      },
      stack + sizeof stack, CLONE_VM | SIGCHLD, nullptr);
  ASSERT_GT(child, 0);
  ASSERT_EQ(family.next_number(), 1);
  checkpoint_here();
  family.go();
  EXPECT_EQ(Family::end_of(child), 0);
}

LIVE_TEST_WITH(Tree, RefusesAThreadWithDescriptorsOfItsOwn, Options{.refused = "has a descriptor table of its own"}) {
  std::atomic<int> stage{0};
  std::thread thread([&] {
    stage = ::unshare(CLONE_FILES) == 0 ? 1 : 2;
    while (stage == 1) {
      ::sched_yield();
    }
  });
  while (stage == 0) {
    ::sched_yield();
  }
  checkpoint_here();
  stage = 2;
  thread.join();
}

}  // namespace
}  // namespace ferry::live
