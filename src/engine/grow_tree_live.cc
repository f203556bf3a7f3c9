// Trees of processes: parents, sessions, groups, and who is dead already.
#include <sched.h>
#include <signal.h>
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
    family.stay([&] { return ::getsid(0) == me && Family::end_of(older) == 0 && Family::end_of(younger) == 0; });
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
  struct sigaction action {};
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
