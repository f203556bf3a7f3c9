#include "sys/task_look.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

namespace ferry::sys {
namespace {

class TaskLookOfThisKernel : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = TaskLook::open();
    if (!opened.has_value()) {
      GTEST_SKIP() << opened.error().message();
    }
    look = std::move(*opened);
  }
  TaskLook look;
};

TEST_F(TaskLookOfThisKernel, TellsWhatAThreadWouldAnswer) {
  std::atomic<pid_t> tid = 0;
  std::atomic<bool> done = false;
  std::vector<char> room(64 << 10);
  std::thread other([&] {
    ::prctl(PR_SET_NAME, "watched");
    ::prctl(PR_SET_TIMERSLACK, 123456);
    ::prctl(PR_SET_PDEATHSIG, SIGUSR2);
    stack_t stack{};
    stack.ss_sp = room.data();
    stack.ss_size = room.size();
    stack_t before{};
    ::sigaltstack(&stack, &before);
    tid = static_cast<pid_t>(::syscall(SYS_gettid));
    tid.notify_one();
    done.wait(false);
    ::prctl(PR_SET_PDEATHSIG, 0);
    ::sigaltstack(&before, nullptr);  // a sanitizer's, which it takes down itself
  });
  tid.wait(0);
  const auto threads = look.threads_of(HostPid(::getpid()));
  done = true;
  done.notify_one();
  other.join();
  ASSERT_TRUE(threads.has_value()) << threads.error().message();
  ASSERT_GE(threads->size(), 2U);
  EXPECT_EQ(threads->front().tid, static_cast<std::uint64_t>(::getpid()));
  const auto found = std::find_if(threads->begin(), threads->end(),
                                  [&](const TaskWords& t) { return t.tid == static_cast<std::uint64_t>(tid.load()); });
  ASSERT_NE(found, threads->end());
  EXPECT_STREQ(found->name.data(), "watched");
  EXPECT_EQ(found->ns_tid, found->tid);
  EXPECT_EQ(found->timer_slack, 123456U);
  EXPECT_EQ(found->death_signal, static_cast<std::uint64_t>(SIGUSR2));
  EXPECT_EQ(found->stack_base, reinterpret_cast<std::uint64_t>(room.data()));
  EXPECT_EQ(found->stack_size, room.size());
  EXPECT_NE(found->clear_child_tid, 0U);
  EXPECT_EQ(found->nature.credentials, threads->front().nature.credentials);
  EXPECT_EQ(found->nature.namespaces, threads->front().nature.namespaces);
  EXPECT_FALSE(found->has_children());
}

TEST_F(TaskLookOfThisKernel, SeesAChildAndAnotherSetOfCredentials) {
  std::atomic<int> step = 0;
  pid_t child = 0;
  std::thread other([&] {
    ::prctl(PR_SET_KEEPCAPS, 1);  // makes credentials of its own
    child = ::fork();
    if (child == 0) {
      ::pause();
      ::_exit(0);
    }
    step = 1;
    step.notify_one();
    step.wait(1);
    ::kill(child, SIGKILL);
  });
  step.wait(0);
  const auto threads = look.threads_of(HostPid(::getpid()));
  step = 2;
  step.notify_one();
  other.join();
  ASSERT_TRUE(threads.has_value()) << threads.error().message();
  const auto with =
      std::count_if(threads->begin(), threads->end(), [](const TaskWords& t) { return t.has_children(); });
  EXPECT_EQ(with, 1);
  EXPECT_NE(threads->back().nature.credentials, threads->front().nature.credentials);
}

TEST_F(TaskLookOfThisKernel, SaysSoOfAProcessThatIsNotThere) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  const auto threads = look.threads_of(HostPid(child));
  EXPECT_TRUE(!threads.has_value() || threads->empty());
}

}  // namespace
}  // namespace ferry::sys
