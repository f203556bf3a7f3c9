// So many threads that they are looked at in bulk (sys/task_look.h) and most of them not asked.
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>

#include "live/live.h"

namespace ferry::live {
namespace {

constexpr int kThreads = 80;
constexpr int kDifferent = 10;  // from this number on some threads differ in what most of them share

struct OfThread {
  std::string name;
  unsigned long slack = 0;
  void* stack = nullptr;
  std::size_t stack_size = 0;
  int stack_flags = 0;
  int death_signal = 0;
  std::array<__user_cap_data_struct, 2> caps{};
  int no_new_privs = 0, seccomp = 0, secure_bits = 0, memory_failure = 0;
  int policy = 0, nice = 0;
  sigset_t blocked{}, pending{};

  static OfThread read() {
    OfThread out;
    char text[16] = {};
    ::prctl(PR_GET_NAME, text);
    out.name = text;
    out.slack = static_cast<unsigned long>(::prctl(PR_GET_TIMERSLACK));
    stack_t alternate{};
    ::sigaltstack(nullptr, &alternate);
    out.stack = alternate.ss_sp;
    out.stack_size = alternate.ss_size;
    out.stack_flags = alternate.ss_flags;
    ::prctl(PR_GET_PDEATHSIG, &out.death_signal);
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    ::syscall(SYS_capget, &header, out.caps.data());
    out.no_new_privs = ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    out.seccomp = ::prctl(PR_GET_SECCOMP);
    out.secure_bits = ::prctl(PR_GET_SECUREBITS);
    out.memory_failure = ::prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
    out.policy = ::sched_getscheduler(0);
    out.nice = ::getpriority(PRIO_PROCESS, 0);
    ::pthread_sigmask(SIG_BLOCK, nullptr, &out.blocked);
    ::sigpending(&out.pending);
    return out;
  }
  [[nodiscard]] std::string difference(const OfThread& now) const {
    if (now.name != name) {
      return "name " + now.name;
    }
    if (now.slack != slack) {
      return "timer slack " + std::to_string(now.slack);
    }
    if (now.stack != stack || now.stack_size != stack_size || now.stack_flags != stack_flags) {
      return "alternate stack";
    }
    if (now.death_signal != death_signal) {
      return "death signal " + std::to_string(now.death_signal);
    }
    if (std::memcmp(now.caps.data(), caps.data(), sizeof caps) != 0) {
      return "capabilities";
    }
    if (now.no_new_privs != no_new_privs) {
      return "no_new_privs";
    }
    if (now.seccomp != seccomp) {
      return "seccomp mode " + std::to_string(now.seccomp);
    }
    if (now.secure_bits != secure_bits) {
      return "secure bits " + std::to_string(now.secure_bits);
    }
    if (now.memory_failure != memory_failure) {
      return "what to do on memory failures";
    }
    if (now.policy != policy || now.nice != nice) {
      return "scheduling";
    }
    if (std::memcmp(&now.blocked, &blocked, 8) != 0) {
      return "blocked signals";
    }
    if (std::memcmp(&now.pending, &pending, 8) != 0) {
      return "pending signals";
    }
    return "";
  }
};

bool drop(int capability) {
  std::array<__user_cap_data_struct, 2> caps{};
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  ::syscall(SYS_capget, &header, caps.data());
  caps[0].effective &= ~(1U << capability);
  caps[0].permitted &= ~(1U << capability);
  return ::syscall(SYS_capset, &header, caps.data()) == 0;
}

bool filter_nothing() {
  sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  sock_fprog program{1, &allow};
  return ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0;
}

bool wait_for_usr1() {
  sigset_t usr1;
  sigemptyset(&usr1);
  sigaddset(&usr1, SIGUSR1);
  ::pthread_sigmask(SIG_BLOCK, &usr1, nullptr);
  return ::syscall(SYS_tgkill, ::getpid(), ::gettid(), SIGUSR1) == 0;
}

// What a thread does before it waits; false if it could not.
bool become(int number, std::vector<char>& stack) {
  const std::string name = "thread " + std::to_string(number);
  bool good = ::prctl(PR_SET_NAME, name.c_str()) == 0 &&
              ::prctl(PR_SET_TIMERSLACK, 1000UL + static_cast<unsigned long>(number)) == 0;
  if (number % 3 != 0) {
    stack.resize(16384 + static_cast<std::size_t>(number) * 64);
    stack_t alternate{};
    alternate.ss_sp = stack.data();
    alternate.ss_size = stack.size();
    constexpr int kAutoDisarm = static_cast<int>(1U << 31);
    alternate.ss_flags = number % 5 == 0 ? kAutoDisarm : 0;
    good = good && ::sigaltstack(&alternate, nullptr) == 0;
  }
  if (number % 4 == 1) {
    // Ignored by default: in one flavour the restored parent is criu, which ends.
    good = good && ::prctl(PR_SET_PDEATHSIG, SIGWINCH) == 0;
  }
  switch (number - kDifferent) {
    case 0:
      return good && drop(CAP_SYS_NICE);
    case 1:
      return good && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
    case 2:
      return good && ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && filter_nothing();
    case 3:
      return good && ::prctl(PR_SET_SECUREBITS, SECBIT_NOROOT) == 0;
    case 4:
      return good && ::prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0;
    case 5: {
      const sched_param none{};
      return good && ::sched_setscheduler(0, SCHED_BATCH, &none) == 0 && ::setpriority(PRIO_PROCESS, 0, 5) == 0;
    }
    case 6:
      return good && wait_for_usr1();
    default:
      return good;
  }
}

LIVE_TEST(ManyThreads, EachKeepsWhatIsItsOwn) {
  std::atomic<int> ready{0}, failed{0}, stage{0};
  std::vector<std::string> differences(kThreads);
  std::vector<std::vector<char>> stacks(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const auto number = static_cast<std::size_t>(i);
      failed += become(i, stacks[number]) ? 0 : 1;
      const OfThread before = OfThread::read();
      ++ready;
      stage.wait(0);
      differences[number] = before.difference(OfThread::read());
    });
  }
  while (ready != kThreads) {
    ::sched_yield();
  }
  ASSERT_EQ(failed, 0);
  checkpoint_here();
  stage = 1;
  stage.notify_all();
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (std::size_t i = 0; i < differences.size(); ++i) {
    EXPECT_EQ(differences[i], "") << "of thread " << i;
  }
}

LIVE_TEST(ManyThreads, TheChildOfOneOfThemIsFound) {
  std::atomic<int> ready{0}, stage{0};
  std::atomic<pid_t> child{0}, reaped{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      if (i == kThreads / 2) {
        child = ::fork();
        if (child == 0) {
          for (;;) {
            ::pause();
          }
        }
      }
      ++ready;
      stage.wait(0);
      if (i == kThreads / 2) {
        ::kill(child, SIGKILL);
        reaped = ::waitpid(child, nullptr, 0);
      }
    });
  }
  while (ready != kThreads) {
    ::sched_yield();
  }
  checkpoint_here();
  stage = 1;
  stage.notify_all();
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(reaped, child);
}

LIVE_TEST(ManyMappings, KeepTheirFlags) {
  constexpr std::size_t kMappings = 600, kPage = 4096;
  char* at = static_cast<char*>(
      ::mmap(nullptr, kMappings * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(at, MAP_FAILED);
  for (std::size_t i = 0; i < kMappings; ++i) {
    at[i * kPage] = static_cast<char>(i);
    if (i % 2 == 0) {
      ASSERT_EQ(::mprotect(at + i * kPage, kPage, PROT_READ), 0);
    }
  }
  ASSERT_EQ(::madvise(at + 101 * kPage, kPage, MADV_DONTFORK), 0);
  ASSERT_EQ(::madvise(at + 201 * kPage, kPage, MADV_DONTDUMP), 0);
  ASSERT_EQ(::madvise(at + 301 * kPage, kPage, MADV_WIPEONFORK), 0);
  checkpoint_here();
  for (std::size_t i = 0; i < kMappings; ++i) {
    ASSERT_EQ(at[i * kPage], static_cast<char>(i)) << "page " << i;
  }
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(at[301 * kPage] == 0 && ::msync(at + 101 * kPage, kPage, MS_ASYNC) != 0 ? 7 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

}  // namespace
}  // namespace ferry::live
