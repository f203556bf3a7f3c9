// Trees of processes: parents, sessions, groups, and who is dead already.
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>

#include <fstream>
#include <thread>
#include <vector>

#include "live/family.h"
#include "live/live.h"

namespace ferry::live {
namespace {

char state_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const std::size_t end = text.rfind(')');
  return end == std::string::npos || end + 2 >= text.size() ? '?' : text[end + 2];
}

// Waits until a child that was told to is stopped or dead, without reaping it.
void await_change(pid_t pid, int what) {
  siginfo_t info{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(pid), &info, what | WNOWAIT), 0);
}

LIVE_TEST(Tree, ADaemonWhoseSessionLeaderIsDead) {
  const Family family;
  const pid_t body = ::getpid();
  const pid_t leader = fork_to([&] {
    ::setsid();
    const pid_t session = ::getpid();
    for (int i = 0; i < 2; ++i) {
      fork_to([&] {
        const pid_t daemon = ::getpid();
        while (::getppid() != body) {
          ::sched_yield();
        }
        family.stay([&] {
          return ::getpid() == daemon && ::getsid(0) == session && ::getpgrp() == session && ::getppid() == body;
        });
      });
    }
    ::_exit(0);
  });
  const int daemons[] = {family.next_number(), family.next_number()};
  ASSERT_EQ(Family::end_of(leader), 0);
  checkpoint_here();
  family.go(2);
  EXPECT_EQ(Family::end_of(daemons[0]), 0);
  EXPECT_EQ(Family::end_of(daemons[1]), 0);
  EXPECT_EQ(::waitpid(-1, nullptr, __WALL), -1) << "nobody else is there";
}

LIVE_TEST(Tree, ChildrenFromBeforeTheParentsSetsid) {
  const Family family;
  const pid_t body = ::getpid(), session = ::getsid(0);
  const pid_t child = fork_to([&] {
    const pid_t older = fork_to([&] { family.stay([&] { return ::getsid(0) == session && ::getppid() != body; }); });
    ::setsid();
    const pid_t me = ::getpid();
    const pid_t younger = fork_to([&] { family.stay([&] { return ::getsid(0) == me; }); });
    family.stay([&] {
      return ::getsid(0) == me && Family::end_of(older) == 0 && Family::end_of(younger) == 0;
    });
  });
  for (int i = 0; i < 3; ++i) {
    ASSERT_GT(family.next_number(), 0);
  }
  checkpoint_here();
  family.go(3);
  EXPECT_EQ(Family::end_of(child), 0);
}

LIVE_TEST(Tree, AnOrphanInTheSessionOfALivingNephew) {
  const Family family;
  const pid_t body = ::getpid();
  const pid_t uncle = fork_to([&] {
    fork_to([&] {
      ::setsid();
      const pid_t session = ::getpid();
      fork_to([&] {
        fork_to([&] {
          while (::getppid() != body) {
            ::sched_yield();
          }
          family.stay([&] { return ::getsid(0) == session && ::getppid() == body; });
        });
        ::_exit(0);
      });
      ::wait(nullptr);
      family.stay([&] { return ::getsid(0) == session && ::getppid() != body; });
    });
    int status = -1;
    ::wait(&status);
    ::_exit(status == 0 ? 0 : 1);
  });
  int orphan = family.next_number();
  const int other = family.next_number();
  checkpoint_here();
  family.go(2);
  EXPECT_EQ(Family::end_of(uncle), 0);
  int status = -1;
  const pid_t ended = ::waitpid(-1, &status, 0);
  EXPECT_TRUE(ended == orphan || ended == other) << ended;
  EXPECT_EQ(status, 0);
}

LIVE_TEST(Tree, AGroupWhoseLeaderIsDead) {
  const Family family;
  const pid_t leader = fork_to([&] {
    ::setpgid(0, 0);
    family.stay([] { return true; });
  });
  ASSERT_EQ(family.next_number(), leader);
  std::vector<pid_t> members;
  for (int i = 0; i < 3; ++i) {
    members.push_back(fork_to([&] {
      ::setpgid(0, leader);
      family.stay([&] { return ::getpgrp() == leader; });
    }));
    ASSERT_EQ(family.next_number(), members.back());
  }
  ASSERT_EQ(::kill(leader, SIGKILL), 0);
  ASSERT_EQ(Family::end_of(leader), SIGKILL);
  checkpoint_here();
  family.go(static_cast<int>(members.size()));
  for (const pid_t member : members) {
    EXPECT_EQ(Family::end_of(member), 0);
  }
}

LIVE_TEST(Tree, AGroupWhoseLeaderWentElsewhere) {
  const Family family;
  const pid_t session_group = ::getpgrp();
  const pid_t founder = fork_to([&] {
    ::setpgid(0, 0);
    const pid_t me = ::getpid();
    const pid_t member = fork_to([&] { family.stay([&] { return ::getpgrp() == me; }); });
    ::setpgid(0, session_group);
    family.stay([&] { return ::getpgrp() == session_group && Family::end_of(member) == 0; });
  });
  ASSERT_GT(family.next_number(), 0);
  ASSERT_GT(family.next_number(), 0);
  checkpoint_here();
  family.go(2);
  EXPECT_EQ(Family::end_of(founder), 0);
}

LIVE_TEST(Tree, ASubreaperInTheMiddleStaysOne) {
  const Family family;
  const pid_t reaper = fork_to([&] {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    const pid_t me = ::getpid();
    const auto make_orphan = [&](bool waits) {
      const pid_t between = fork_to([&] {
        fork_to([&] {
          while (::getppid() != me) {
            ::sched_yield();
          }
          if (waits) {
            family.stay([&] { return ::getppid() == me; });
          }
          ::_exit(5);
        });
        ::_exit(0);
      });
      return Family::end_of(between) == 0;
    };
    if (!make_orphan(true)) {
      ::_exit(2);
    }
    family.tell(me);
    family.wait();
    int status = -1;
    if (::wait(&status) < 0 || status != 0) {
      ::_exit(3);
    }
    // After the restore, too, it gets the children of its dead children.
    if (!make_orphan(false) || ::wait(&status) < 0 || WEXITSTATUS(status) != 5) {
      ::_exit(4);
    }
    ::_exit(0);
  });
  ASSERT_GT(family.next_number(), 0);
  ASSERT_GT(family.next_number(), 0);
  checkpoint_here();
  family.go(2);
  const int status = Family::end_of(reaper);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

std::atomic<int> children_ended{0};

// Whose a zombie was is in no image: below a user namespace all are the root's of the host.
LIVE_TEST_WITH(Tree, ZombiesKeepHowTheyEndedAndTellNobodyTwice, Options{.user_namespace = false}) {
  struct sigaction action{};
  action.sa_handler = [](int) { ++children_ended; };
  action.sa_flags = SA_RESTART;
  ASSERT_EQ(::sigaction(SIGCHLD, &action, nullptr), 0);
  const Family family;
  const pid_t exited = fork_to([] { ::_exit(7); });
  const pid_t killed = fork_to([] { ::raise(SIGKILL); });
  const pid_t piped = fork_to([] {
    ::signal(SIGPIPE, SIG_DFL);
    ::raise(SIGPIPE);
  });
  const pid_t named = fork_to([] {
    ::prctl(PR_SET_NAME, "a dead one");
    ::setsid();
    ::_exit(255);
  });
  // The zombie leads the session and group of one that lives.
  const pid_t leader = fork_to([&] {
    ::setsid();
    const pid_t session = ::getpid();
    fork_to([&] { family.stay([&] { return ::getsid(0) == session && ::getpgrp() == session; }); });
    ::_exit(1);
  });
  const int member = family.next_number();
  for (const pid_t pid : {exited, killed, piped, named, leader}) {
    await_change(pid, WEXITED);
  }
  while (children_ended < 1) {
    ::sched_yield();
  }
  // All are dead, so no further signal can be on its way but one that is pending now.
  ::sched_yield();
  const int before = children_ended;
  checkpoint_here();
  EXPECT_EQ(children_ended, before);
  EXPECT_EQ(Family::end_of(exited), 7 << 8);
  EXPECT_EQ(Family::end_of(killed), SIGKILL);
  EXPECT_EQ(Family::end_of(piped), SIGPIPE);
  EXPECT_EQ(Family::end_of(named), 255 << 8);
  EXPECT_EQ(Family::end_of(leader), 1 << 8);
  family.go();
  EXPECT_EQ(Family::end_of(member), 0);
}

LIVE_TEST(Tree, StoppedProcessesStayStoppedUntilContinued) {
  const Family family;
  std::vector<pid_t> stopped;
  for (const int signal : {SIGSTOP, SIGTSTP, SIGTTIN}) {
    stopped.push_back(fork_to([&] {
      ::setpgid(0, 0);
      ::raise(signal);
      ::_exit(3);
    }));
    await_change(stopped.back(), WSTOPPED);
  }
  checkpoint_here();
  for (const pid_t pid : stopped) {
    await_change(pid, WSTOPPED);  // the stop has not been waited for yet
    EXPECT_EQ(state_of(pid), 'T');
    ASSERT_EQ(::kill(pid, SIGCONT), 0);
    EXPECT_EQ(Family::end_of(pid), 3 << 8);
  }
}

LIVE_TEST(Tree, AStoppedProcessKeepsWhichSignalStoppedIt) {
  const Family family;
  const pid_t child = fork_to([&] {
    ::setpgid(0, 0);  // our own group is an orphan, in which nobody is stopped so (setpgid(2))
    ::raise(SIGTTOU);
    ::_exit(3);
  });
  await_change(child, WSTOPPED);
  checkpoint_here();
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  EXPECT_EQ(WSTOPSIG(status), SIGTTOU);
  ASSERT_EQ(::kill(child, SIGCONT), 0);
  EXPECT_EQ(Family::end_of(child), 3 << 8);
}

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
  struct sigaction action{};
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

LIVE_TEST(Tree, AChildOfAThreadIsWaitedFor) {
  const Family family;
  pid_t child = -1;
  std::thread([&] { child = fork_to([&] { family.stay([] { return true; }); }); }).join();
  std::atomic<int> stage{0};
  pid_t of_living = -1;
  int end = -1;
  std::thread thread([&] {
    of_living = fork_to([&] { family.stay([] { return true; }); });
    stage = 1;
    while (stage == 1) {
      ::sched_yield();
    }
    end = Family::end_of(of_living);
  });
  ASSERT_GT(family.next_number(), 0);
  ASSERT_GT(family.next_number(), 0);
  while (stage == 0) {
    ::sched_yield();
  }
  checkpoint_here();
  family.go(2);
  stage = 2;
  thread.join();
  EXPECT_EQ(end, 0);
  EXPECT_EQ(Family::end_of(child), 0);
}

LIVE_TEST(Tree, OthersGoOnWhereTheMainThreadHasEnded) {
  const Family family;
  const pid_t child = fork_to([&] {
    std::atomic<int> ready{0};
    std::thread other([&] {
      ++ready;
      family.wait();
      ::syscall(SYS_exit, 0);
    });
    std::thread last([&] {
      const pid_t tid = ::gettid();
      ++ready;
      while (ready < 2 || state_of(::getpid()) != 'Z') {
        ::sched_yield();
      }
      family.tell(::getpid());
      family.wait();
      ::syscall(SYS_exit, ::gettid() == tid ? 0 : 1);
    });
    while (ready < 2) {
      ::sched_yield();
    }
    ::syscall(SYS_exit, 3);
  });
  ASSERT_EQ(family.next_number(), child);
  checkpoint_here();
  while (state_of(child) != 'Z') {
    ::sched_yield();
  }
  EXPECT_EQ(::waitpid(child, nullptr, WNOHANG), 0) << "it has not ended yet";
  family.go(2);
  EXPECT_EQ(Family::end_of(child), 0) << "how a process ends is how its last thread does";
}

LIVE_TEST(Tree, ThreadsThatEndedLeaveNoTrace) {
  for (int i = 0; i < 20; ++i) {
    std::thread([] { ::sched_yield(); }).join();
  }
  checkpoint_here();
  std::thread([] { ::sched_yield(); }).join();
  std::ifstream status("/proc/self/status");
  std::string text((std::istreambuf_iterator<char>(status)), {});
  EXPECT_NE(text.find("Threads:\t1\n"), std::string::npos);
}

LIVE_TEST_WITH(Tree, RefusesProcessesThatShareTheirMemory, Options{.refused = "are processes that share their memory"}) {
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

LIVE_TEST(Tree, AStoppedProcessWithThreads) {
  const Family family;
  const pid_t child = fork_to([&] {
    ::setpgid(0, 0);
    std::atomic<int> ready{0};
    std::atomic<bool> stop{false};
    std::thread sleeper([&] {
      ++ready;
      ::pause();
    });
    std::thread spinner([&] {
      ++ready;
      while (!stop) {
        ::sched_yield();
      }
      ::_exit(8);
    });
    while (ready < 2) {
      ::sched_yield();
    }
    ::raise(SIGSTOP);
    stop = true;
    spinner.join();
  });
  await_change(child, WSTOPPED);
  checkpoint_here();
  await_change(child, WSTOPPED);
  ASSERT_EQ(::kill(child, SIGCONT), 0);
  EXPECT_EQ(Family::end_of(child), 8 << 8);
}

LIVE_TEST(Tree, AHundredDaemons) {
  const Family family;
  const pid_t body = ::getpid();
  std::vector<pid_t> daemons;
  for (int i = 0; i < 100; ++i) {
    const pid_t leader = fork_to([&] {
      ::setsid();
      fork_to([&] {
        while (::getppid() != body) {
          ::sched_yield();
        }
        const pid_t session = ::getsid(0);
        family.stay([=] { return ::getsid(0) == session && ::getppid() == body; });
      });
      ::_exit(0);
    });
    ASSERT_EQ(Family::end_of(leader), 0);
    daemons.push_back(family.next_number());
  }
  checkpoint_here();
  family.go(100);
  for (const pid_t pid : daemons) {
    EXPECT_EQ(Family::end_of(pid), 0) << pid;
  }
}

}  // namespace
}  // namespace ferry::live
