#include "tracee/process.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::tracee {
namespace {

using namespace std::chrono_literals;

// A page that a test and its children share.
struct Shared {
  std::atomic<std::uint64_t> ticks{0};
  std::atomic<bool> wrong{false};
};

// A child that counts in vector registers and compares: whoever damages its state is found out.
class Counting {
 public:
  Counting() {
    shared_ = static_cast<Shared*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    new (shared_) Shared;
    pid_ = ::fork();
    if (pid_ == 0) {
      count(*shared_);
    }
    wait_for_ticks(1);
  }
  ~Counting() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, __WALL);
    ::munmap(shared_, 4096);
  }
  Counting(const Counting&) = delete;
  Counting& operator=(const Counting&) = delete;

  [[nodiscard]] HostPid pid() const { return HostPid(pid_); }
  [[nodiscard]] bool wrong() const { return shared_->wrong; }
  // Until it has ticked so many times more; false after five seconds.
  bool wait_for_ticks(std::uint64_t more) const {
    const std::uint64_t wanted = shared_->ticks + more;
    for (const Deadline deadline(5s); shared_->ticks < wanted;) {
      if (deadline.passed()) {
        return false;
      }
      ::sched_yield();
    }
    return true;
  }
  [[nodiscard]] std::string status_line(std::string_view key) const {
    const auto text = sys::read_file(fmt::format("/proc/{}/status", pid_));
    if (!text.has_value()) {
      return {};
    }
    const auto at = text->find(std::string(key) + ":");
    return text->substr(at, text->find('\n', at) - at);
  }
  [[nodiscard]] std::size_t mappings() const {
    const auto text = sys::read_file(fmt::format("/proc/{}/maps", pid_));
    return text.has_value() ? static_cast<std::size_t>(std::count(text->begin(), text->end(), '\n')) : 0;
  }

 private:
  [[noreturn]] static void count(Shared& shared) {
    for (;;) {
      std::uint64_t before = 0x1234567890abcdef;
      std::uint64_t after = 0;
      asm volatile(
          "movq %1, %%xmm7\n"
          "mov $20000, %%ecx\n"
          "1: dec %%ecx\n"
          "jnz 1b\n"
          "movq %%xmm7, %0\n"
          : "=r"(after)
          : "r"(before)
          : "xmm7", "ecx", "cc");
      if (after != before) {
        shared.wrong = true;
      }
      ++shared.ticks;
    }
  }
  Shared* shared_;
  pid_t pid_;
};

Result<Process> stopped(HostPid pid) {
  FERRY_TRY(Thread thread, Thread::seize(pid, PTRACE_O_TRACESYSGOOD));
  FERRY_CHECK(thread.interrupt());
  FERRY_CHECK(thread.wait(Deadline(5s)));
  std::vector<Thread> threads;
  threads.push_back(std::move(thread));
  FERRY_TRY(Process process, Process::of(pid, std::move(threads)));
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/maps", pid)));
  FERRY_TRY(const auto maps, sys::parse_maps(text));
  for (const sys::Mapping& m : maps) {
    if (m.name == "[vdso]") {
      FERRY_CHECK(process.map_area(1U << 20, 0, m.start, m.size()));
    }
  }
  return process;
}

TEST(Batch, RunsCallsAndLinksResults) {
  Counting target;
  const std::size_t before = target.mappings();
  {
    auto process = stopped(target.pid());
    ASSERT_TRUE(process.has_value()) << process.error().message();
    Batch batch;
    const Value pid = batch.must("getpid", SYS_getpid, {});
    const Value fd = batch.must("memfd_create", SYS_memfd_create, {batch.string("x"), 0});
    const Data text = batch.string("hello");
    batch.must("write", SYS_write, {fd, text, 5});
    const Data back = batch.room(8);
    const Value read = batch.must("pread", SYS_pread64, {fd, back, 8, 0});
    const Value closed = batch.must("close", SYS_close, {fd});
    const Value bad = batch.may(SYS_close, {-1});
    const auto replies = process->run(process->leader(), batch);
    ASSERT_TRUE(replies.has_value()) << replies.error().message();
    EXPECT_EQ((*replies)[pid], target.pid().value);
    EXPECT_EQ((*replies)[read], 5);
    EXPECT_EQ((*replies)[closed], 0);
    EXPECT_EQ((*replies)[bad], -EBADF);
    EXPECT_EQ(std::memcmp(replies->bytes(back).data(), "hello", 5), 0);
  }
  EXPECT_TRUE(target.wait_for_ticks(3));
  EXPECT_FALSE(target.wrong());
  EXPECT_EQ(target.mappings(), before) << "the area is still mapped";
}

TEST(Batch, EndsAtTheFirstCallThatMustSucceedAndNamesIt) {
  Counting target;
  auto process = stopped(target.pid());
  ASSERT_TRUE(process.has_value()) << process.error().message();
  Batch batch;
  batch.must("closing nothing", SYS_close, {-1});
  batch.must("exit", SYS_exit_group, {1});
  const auto replies = process->run(process->leader(), batch);
  ASSERT_FALSE(replies.has_value());
  EXPECT_EQ(replies.error().os_errno, EBADF);
  EXPECT_NE(replies.error().message().find("closing nothing"), std::string::npos);
  *process = {};
  EXPECT_TRUE(target.wait_for_ticks(3));
}

// The tracer dies while the target is in the middle of a batch: the target finds its own way back.
TEST(Batch, TargetGoesOnWhenItsTracerIsKilled) {
  Counting target;
  const std::string blocked = target.status_line("SigBlk");
  const pid_t tracer = ::fork();
  if (tracer == 0) {
    auto process = stopped(target.pid());
    if (process.has_value()) {
      Batch batch;
      const timespec half_a_second{0, 500'000'000};
      batch.must("nanosleep", SYS_nanosleep, {batch.object(half_a_second), 0});
      (void)process->run(process->leader(), batch);
    }
    _exit(0);
  }
  // In the batch it sleeps, which it never does by itself.
  const auto asleep = [&] { return target.status_line("State").find("S (sleeping)") != std::string::npos; };
  const Deadline deadline(5s);
  while (!asleep() && !deadline.passed()) {
    ::sched_yield();
  }
  ASSERT_TRUE(asleep()) << "the batch did not begin";
  ::kill(tracer, SIGKILL);
  ::waitpid(tracer, nullptr, 0);
  EXPECT_TRUE(target.wait_for_ticks(3)) << target.status_line("State");
  EXPECT_FALSE(target.wrong());
  EXPECT_EQ(target.status_line("SigBlk"), blocked);
}

TEST(QuietSignal, AvoidsWhatIsTaken) {
  EXPECT_EQ(quiet_signal(0), SIGURG);
  EXPECT_EQ(quiet_signal(std::uint64_t{1} << (SIGURG - 1)), SIGWINCH);
}

}  // namespace
}  // namespace ferry::tracee
