#include "tracee/way_back.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <new>

#include "sys/file.h"
#include "tracee/process.h"
#include "tracee/stop_tree.h"

namespace ferry::tracee {
namespace {

using namespace std::chrono_literals;

// A child that waits in a system call for a byte, and checks what the call said and what is blocked.
class Waiting {
 public:
  Waiting() {
    shared_ = static_cast<Shared*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    new (shared_) Shared;
    EXPECT_EQ(::pipe2(pipe_, O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      serve(*shared_, pipe_[0]);
    }
  }
  ~Waiting() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, __WALL);
    ::munmap(shared_, 4096);
    ::close(pipe_[0]);
    ::close(pipe_[1]);
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

  [[nodiscard]] HostPid pid() const { return HostPid(pid_); }
  // What went wrong in there; 0: nothing.
  [[nodiscard]] int wrong() const { return shared_->wrong; }
  // Whether a byte is taken and said so.
  bool answers() {
    const int wanted = shared_->answers + 1;
    if (::write(pipe_[1], "x", 1) != 1) {
      return false;
    }
    for (const Deadline deadline(5s); shared_->answers < wanted;) {
      if (deadline.passed()) {
        return false;
      }
      ::sched_yield();
    }
    return true;
  }

 private:
  struct Shared {
    std::atomic<int> answers{0};
    std::atomic<int> wrong{0};
  };
  [[noreturn]] static void serve(Shared& shared, int from) {
    sigset_t before;
    ::sigprocmask(SIG_SETMASK, nullptr, &before);
    for (;;) {
      pollfd events{from, POLLIN, 0};
      char byte = 0;
      sigset_t now;
      if (::poll(&events, 1, -1) != 1) {
        shared.wrong = 1;
      } else if (::read(from, &byte, 1) != 1) {
        shared.wrong = 2;
      } else if (::sigprocmask(SIG_SETMASK, nullptr, &now) != 0 || ::sigismember(&now, SIGUSR1) != 0 ||
                 ::sigismember(&now, SIGCHLD) != ::sigismember(&before, SIGCHLD)) {
        shared.wrong = 3;
      }
      ++shared.answers;
    }
  }
  Shared* shared_;
  int pipe_[2];
  pid_t pid_;
};

Result<std::vector<sys::Mapping>> mappings_of(HostPid pid) {
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/maps", pid)));
  return sys::parse_maps(text);
}

struct Stopped {
  Process process;
  std::vector<sys::Mapping> mappings;
  bool finds_back = false;
};
Result<Stopped> stopped(HostPid pid) {
  Stopped out;
  WaysBack ways;
  ways.learn(pid);
  FERRY_TRY(auto task, stop_process(pid, Deadline(5s)));
  FERRY_TRY(out.process, Process::of(pid, std::move(task.threads)));
  FERRY_CHECK(out.process.leader().set_options(PTRACE_O_TRACESYSGOOD));
  FERRY_TRY(out.mappings, mappings_of(pid));
  const auto way = ways.of(pid, out.mappings);
  out.finds_back = way.has_value();
  out.process.set_way_back(way);
  return out;
}

// Calls until it is killed.
[[noreturn]] void call_for_ever(HostPid pid, std::atomic<int>& calls) {
  auto target = stopped(pid);
  for (; target.has_value();) {
    if (!target->process.call(target->process.leader(), SYS_getppid, {}).has_value()) {
      break;
    }
    ++calls;
  }
  _exit(1);
}

TEST(WayBack, IsFoundInTheCLibrary) {
  Waiting target;
  auto stop = stopped(target.pid());
  ASSERT_TRUE(stop.has_value()) << stop.error().message();
  EXPECT_TRUE(stop->finds_back);
}

TEST(WayBack, ACallLeavesTheStackAsItWas) {
  Waiting target;
  {
    auto stop = stopped(target.pid());
    ASSERT_TRUE(stop.has_value()) << stop.error().message();
    const auto registers = stop->process.leader().registers();
    ASSERT_TRUE(registers.has_value());
    std::vector<std::byte> before(8192);
    std::vector<std::byte> after(before.size());
    const std::uint64_t from = registers->rsp - before.size();
    const int memory = stop->process.memory();
    ASSERT_EQ(::pread(memory, before.data(), before.size(), static_cast<off_t>(from)),
              static_cast<ssize_t>(before.size()));
    const auto got = stop->process.call(stop->process.leader(), SYS_getppid, {});
    ASSERT_TRUE(got.has_value()) << got.error().message();
    EXPECT_EQ(*got, ::getpid());
    ASSERT_EQ(::pread(memory, after.data(), after.size(), static_cast<off_t>(from)),
              static_cast<ssize_t>(after.size()));
    EXPECT_EQ(before, after);
  }
  EXPECT_TRUE(target.answers());
  EXPECT_EQ(target.wrong(), 0);
}

// Wherever in a call that is: hundreds of times, a different time after the first call.
TEST(WayBack, TheTargetGoesOnWhenItsTracerIsKilled) {
  Waiting target;
  auto* calls =
      static_cast<std::atomic<int>*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(calls, MAP_FAILED);
  for (int i = 0; i < 300 && !HasFailure(); ++i) {
    new (calls) std::atomic<int>(0);
    ASSERT_TRUE(target.answers()) << "before kill " << i;
    const pid_t tracer = ::fork();
    if (tracer == 0) {
      call_for_ever(target.pid(), *calls);
    }
    for (const Deadline deadline(5s); *calls == 0 && !deadline.passed();) {
      ::sched_yield();
    }
    EXPECT_GT(*calls, 0);
    const auto end = std::chrono::steady_clock::now() + std::chrono::nanoseconds(i * 1'000);
    while (std::chrono::steady_clock::now() < end) {
    }
    ::kill(tracer, SIGKILL);
    ::waitpid(tracer, nullptr, 0);
    EXPECT_TRUE(target.answers()) << "after kill " << i;
    EXPECT_EQ(target.wrong(), 0) << "after kill " << i;
  }
  ::munmap(calls, 4096);
}

TEST(WayBack, CodeThatWasOverwrittenIsNotUsed) {
  Waiting target;
  WaysBack ways;
  ways.learn(target.pid());
  auto stop = stopped(target.pid());
  ASSERT_TRUE(stop.has_value()) << stop.error().message();
  const auto way = ways.of(target.pid(), stop->mappings);
  ASSERT_TRUE(way.has_value());
  const unsigned char breakpoint = 0xcc;
  ASSERT_EQ(::pwrite(stop->process.memory(), &breakpoint, 1, static_cast<off_t>(way->from_signal)), 1);
  EXPECT_FALSE(ways.of(target.pid(), stop->mappings).has_value());
}

}  // namespace
}  // namespace ferry::tracee
