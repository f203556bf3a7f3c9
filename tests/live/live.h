// Live tests: programs that hold kernel state, are checkpointed, killed, restored, and check themselves.
//
//   LIVE_TEST(Eventfd, KeepsCounterAbove32Bits) {
//     const int fd = ::eventfd(0, EFD_NONBLOCK);
//     put_u64(fd, (1ULL << 32) + 5);
//     checkpoint_here();
//     EXPECT_EQ(get_u64(fd), (1ULL << 32) + 5);
//   }
//
// The body runs as root in a re-executed copy of this program, alone in its session, with a file for
// its output.  The harness runs the `criu` that was built beside this program, once for each flavour:
//   host            the tree lives in our namespaces; dumped, killed, restored
//   pid_namespace   pid 1 of a pid namespace with a mount namespace and a root of its own, as in a container
//   leave_running   dumped without being killed; the source has to pass, and then the restored copy as well
//   user_namespace  as pid_namespace, below a user namespace whose root is nobody on the host; what fails there
//                   before its first checkpoint, for want of privileges, is skipped
// In each of them what /proc shows of the tree is compared before and after (outside.h).
// Expectations (EXPECT_*, ASSERT_*, FAIL, GTEST_SKIP) work in the body as in any test, before and
// after the checkpoint, also without privileges or descriptors: the harness reads them from memory.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace ferry::live {

struct Options {
  std::vector<std::string> dump = {};     // further arguments of criu dump
  std::vector<std::string> restore = {};  // further arguments of criu restore
  // Not empty: the dump has to fail with this text in its log, and the body goes on as if nothing had been.
  std::string refused = {};
  bool host = true;
  bool pid_namespace = true;
  bool leave_running = true;
  bool user_namespace = true;
  bool lazy = false;     // restored without its memory, which criu lazy-pages brings (all are with FERRY_LIVE_LAZY=1)
  bool changes = false;  // the tree does not stand still: what /proc shows is not compared
};

// Returns once the harness has checkpointed and restored this process.  May be called again.
// The caller holds no odd state meanwhile: it runs in user mode, calling sched_yield(2) now and then.
void checkpoint_here();
// The same with criu pre-dump, which leaves the process as it is; the next one of either kind builds upon it.
void pre_dump_here();
// The same without any system call or clock, for a process that may not use them (seccomp's strict mode
// takes the time stamp counter away, too).  Such a body ends with finish_without_calls().
void checkpoint_without_calls();
[[noreturn]] void finish_without_calls();

namespace detail {
// Waits until the thread sleeps in the system call `number`.
[[nodiscard]] bool wait_until_in_call(const std::atomic<pid_t>& tid, long number);
}  // namespace detail

// Checkpoints while `work` sleeps in the system call `number` in another thread; returns what it returns.
template <class Work>
auto checkpoint_while(long number, Work work) {
  using Value = std::invoke_result_t<Work>;
  std::atomic<pid_t> tid{0};
  std::optional<Value> value;
  std::thread thread([&] {
    tid = ::gettid();
    value = work();
  });
  EXPECT_TRUE(detail::wait_until_in_call(tid, number)) << "10 s passed and the thread is not in call " << number;
  checkpoint_here();
  thread.join();
  return std::move(*value);
}

struct LiveTest {
  const char* suite;
  const char* name;
  const char* file;
  int line;
  Options options;
  void (*body)();
};
bool list(LiveTest test);
const std::deque<LiveTest>& all();

}  // namespace ferry::live

#define LIVE_TEST_WITH(suite, name, ...)                                                             \
  static void suite##_##name##_body();                                                               \
  [[maybe_unused]] static const bool suite##_##name##_listed =                                       \
      ::ferry::live::list({#suite, #name, __FILE__, __LINE__, __VA_ARGS__, &suite##_##name##_body}); \
  static void suite##_##name##_body()
#define LIVE_TEST(suite, name) LIVE_TEST_WITH(suite, name, ::ferry::live::Options{})
