// The side of the re-executed copy.
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "live/gate.h"
#include "live/live.h"

namespace ferry::live {
namespace {

// A body whose harness died must not spin for ever.
constexpr time_t kPatienceSeconds = 180;

time_t now() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);  // the vDSO's: no system call
  return time.tv_sec;
}

void spin_until_passed() {
  Gate& g = gate();
  const std::uint32_t mine = g.arrived.fetch_add(1) + 1;
  const time_t give_up = now() + kPatienceSeconds;
  while (g.passed.load() < mine) {
    for (int i = 0; i < 2000; ++i) {
      __builtin_ia32_pause();
    }
    ::sched_yield();
    if (now() > give_up) {
      std::abort();
    }
  }
}

// About as patient, by counting: a pause takes at least some ten cycles.
bool count_until_passed(std::uint32_t mine) {
  for (std::uint64_t i = 0; i < 20'000'000'000; ++i) {
    if (gate().passed.load() >= mine) {
      return true;
    }
    __builtin_ia32_pause();
  }
  return false;
}

class ToGate : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    Gate& g = gate();
    if (result.skipped()) {
      g.skipped = 1;
    } else if (result.failed()) {
      ++g.failures;
    } else {
      return;
    }
    const std::string text = std::string(result.file_name() != nullptr ? result.file_name() : "?") + ":" +
                             std::to_string(result.line_number()) + ": " + result.message() + "\n";
    const std::size_t room = sizeof g.text - g.text_size;
    const std::size_t size = std::min(room, text.size());
    std::memcpy(g.text + g.text_size, text.data(), size);
    g.text_size += static_cast<std::uint32_t>(size);
  }
};

class Body : public testing::Test {
 public:
  explicit Body(void (*body)()) : body_(body) {}
  void TestBody() override { body_(); }

 private:
  void (*body_)();
};

}  // namespace

Gate& gate() {
  static Gate g;
  return g;
}

void checkpoint_here() { spin_until_passed(); }

void pre_dump_here() {
  gate().pre_dump = 1;
  spin_until_passed();
  gate().pre_dump = 0;
}

void checkpoint_without_calls() {
  if (!count_until_passed(gate().arrived.fetch_add(1) + 1)) {
    __builtin_trap();
  }
}

void finish_without_calls() {
  gate().finished = 1;
  (void)count_until_passed(~std::uint32_t{0});  // never: the harness ends us
  __builtin_trap();
}

bool detail::wait_until_in_call(const std::atomic<pid_t>& tid, long number) {
  const time_t give_up = now() + 10;
  while (now() <= give_up) {
    if (tid != 0) {
      // "running", or the number of the call the thread sleeps in (proc(5), /proc/PID/syscall)
      std::ifstream file("/proc/self/task/" + std::to_string(tid) + "/syscall");
      std::string word;
      file >> word;
      if (word == std::to_string(number)) {
        return true;
      }
    }
    ::sched_yield();
  }
  return false;
}

void run_body(const char* suite_and_name, int announce) {
  const LiveTest* wanted = nullptr;
  for (const LiveTest& t : all()) {
    if (std::string(t.suite) + "." + t.name == suite_and_name) {
      wanted = &t;
    }
  }
  if (wanted == nullptr) {
    std::fprintf(stderr, "there is no live test %s\n", suite_and_name);
    std::_Exit(2);
  }
  int argc = 1;
  char program[] = "live_tests";
  char* argv[] = {program, nullptr};
  testing::InitGoogleTest(&argc, argv);
  testing::UnitTest::GetInstance()->listeners().Append(new ToGate);
  testing::RegisterTest(wanted->suite, wanted->name, nullptr, nullptr, wanted->file, wanted->line,
                        [body = wanted->body]() -> testing::Test* { return new Body(body); });
  const auto address = reinterpret_cast<std::uintptr_t>(&gate());
  if (::write(announce, &address, sizeof address) != sizeof address) {
    std::_Exit(2);
  }
  ::close(announce);
  if (RUN_ALL_TESTS() != 0 && gate().failures == 0) {
    gate().failures = 1;  // failed without saying why
  }
  gate().finished = 1;
  // The harness ends us: an exit could fail under the credentials or filters that the body took on.
  const time_t give_up = now() + kPatienceSeconds;
  while (now() <= give_up) {
    __builtin_ia32_pause();
  }
  std::abort();
}

}  // namespace ferry::live
