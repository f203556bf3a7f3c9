#include "migrate/post_copy_warden.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

namespace ferry::migrate {
namespace {

// A directory that looks like a freezer's, with one process in it that does nothing.
class Warden : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "/ferry-warden-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    cgroup_ = name;
    sleeper_ = ::fork();
    if (sleeper_ == 0) {
      for (;;) {
        ::pause();
      }
    }
    std::ofstream(cgroup_ + "/cgroup.freeze") << "0\n";
    std::ofstream(cgroup_ + "/cgroup.procs") << sleeper_ << "\n";
  }
  void TearDown() override {
    ::kill(sleeper_, SIGKILL);
    if (!reaped_) {
      ::waitpid(sleeper_, nullptr, 0);
    }
    std::filesystem::remove_all(cgroup_);
  }
  // Somebody who posts a warden, has it hold something or not, and ends as if killed.
  void post_and_die(bool hold) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      auto warden = PostCopyWarden::post(cgroup_);
      const UniqueFd held(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      const bool good = warden.has_value() && (!hold || warden->hold(held.get()).has_value());
      ::_exit(good ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    ASSERT_EQ(status, 0);
  }
  bool ends_within(std::chrono::milliseconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (std::chrono::steady_clock::now() < deadline) {
      if (::waitpid(sleeper_, nullptr, WNOHANG) == sleeper_) {
        reaped_ = true;
        return true;
      }
      std::this_thread::yield();
    }
    return false;
  }

  std::string cgroup_;
  pid_t sleeper_ = -1;
  bool reaped_ = false;
};

TEST_F(Warden, EndsATreeWhoseMemoryNobodyBringsAnyMore) {
  post_and_die(true);
  EXPECT_TRUE(ends_within(std::chrono::seconds(10)));
}

TEST_F(Warden, LeavesATreeAloneThatHasAllItsMemory) {
  {
    auto warden = PostCopyWarden::post(cgroup_);
    ASSERT_TRUE(warden.has_value());
    const UniqueFd held(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(warden->hold(held.get()).has_value());
    ASSERT_TRUE(warden->drop(held.get()).has_value());
  }  // it has ended when it was dismissed
  EXPECT_EQ(::waitpid(sleeper_, nullptr, WNOHANG), 0);
}

TEST_F(Warden, HoldsASecondDescriptorOnlyUntilItIsDropped) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  auto warden = PostCopyWarden::post(cgroup_);
  ASSERT_TRUE(warden.has_value());
  const int number = writer.get();
  ASSERT_TRUE(warden->hold(number).has_value());
  writer.reset();
  char byte = 0;
  EXPECT_EQ(::read(reader.get(), &byte, 1), -1) << "the other end is closed";
  ASSERT_TRUE(warden->drop(number).has_value());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  ssize_t got = -1;
  while (got != 0 && std::chrono::steady_clock::now() < deadline) {
    got = ::read(reader.get(), &byte, 1);
  }
  EXPECT_EQ(got, 0) << "the warden still holds the other end";
}

}  // namespace
}  // namespace ferry::migrate
