// Trees that are hard to stop: they change meanwhile, or somebody else has a hand in them.
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>

#include <thread>

#include "live/family.h"
#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST_WITH(Tree, RefusesAVforkThatDoesNotEnd,
               Options{.dump = {"--timeout", "1"}, .refused = "neither executes a program nor ends"}) {
  const Family family;
  static const Family* shared = &family;
  const pid_t parent = fork_to([&] {
    alignas(16) static char stack[64 * 1024];
    const pid_t child = ::clone(
        [](void*) {
          shared->tell(::getppid());
          shared->wait();
          ::_exit(4);
          return 0;
        },
        stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr);
    ::_exit(Family::end_of(child) == 4 << 8 ? 0 : 1);
  });
  ASSERT_EQ(family.next_number(), parent);
  checkpoint_here();
  family.go();
  EXPECT_EQ(Family::end_of(parent), 0);
}

LIVE_TEST_WITH(Tree, RefusesATracedProcess, Options{.refused = "is traced by pid"}) {
  const Family family;
  const pid_t tracee = fork_to([&] { family.stay([] { return true; }); });
  ASSERT_EQ(family.next_number(), tracee);
  const pid_t tracer = fork_to([&] {
    constexpr long kSeize = 0x4206;  // PTRACE_SEIZE
    if (::syscall(SYS_ptrace, kSeize, tracee, nullptr, nullptr) != 0) {
      ::_exit(9);
    }
    family.stay([] { return true; });
  });
  ASSERT_EQ(family.next_number(), tracer);
  checkpoint_here();
  family.go(2);
  EXPECT_EQ(Family::end_of(tracer), 0);
  EXPECT_EQ(Family::end_of(tracee), 0);
}

// Children that come and go while the tree is being stopped.
template <class Spawn>
void storm(Spawn spawn) {
  const Family family;
  const pid_t parent = fork_to([&] {
    family.tell(::getpid());
    for (unsigned i = 0;; ++i) {
      spawn();
      if (i == 20) {
        family.tell(1);
      }
    }
  });
  ASSERT_EQ(family.next_number(), parent);
  ASSERT_EQ(family.next_number(), 1) << "the storm has not begun";
  checkpoint_here();
  EXPECT_EQ(::kill(parent, 0), 0);
  ASSERT_EQ(::kill(parent, SIGKILL), 0);
  EXPECT_EQ(Family::end_of(parent), SIGKILL);
}

LIVE_TEST_WITH(Tree, AStormOfForks, Options{.changes = true}) {
  storm([] {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::_exit(3);
    }
    if (Family::end_of(pid) != 3 << 8) {
      ::_exit(1);
    }
  });
}

LIVE_TEST_WITH(Tree, AStormOfSpawnedPrograms, Options{.changes = true}) {
  storm([] {
    char name[] = "/bin/true";
    char* arguments[] = {name, nullptr};
    pid_t pid = -1;
    if (::posix_spawn(&pid, name, nullptr, nullptr, arguments, nullptr) != 0 || Family::end_of(pid) != 0) {
      ::_exit(1);
    }
  });
}

LIVE_TEST_WITH(Tree, AStormOfThreads, Options{.changes = true}) {
  storm([] { std::thread([] { ::sched_yield(); }).join(); });
}

}  // namespace
}  // namespace ferry::live
