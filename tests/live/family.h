// For bodies with children: who waits for the checkpoint asleep in a pipe, checks itself, and says so.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

namespace ferry::live {

class Family {
 public:
  Family() {
    // What outlives its parent comes to the body, in every flavour.
    EXPECT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
    EXPECT_EQ(::pipe(ready_), 0);
    EXPECT_EQ(::pipe(go_), 0);
  }
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;

  // Tells the body a number, such as a pid; it is what next_number() returns.
  void tell(int number) const { (void)!::write(ready_[1], &number, sizeof number); }
  [[nodiscard]] int next_number() const {
    int number = -1;
    return ::read(ready_[0], &number, sizeof number) == sizeof number ? number : -1;
  }
  // In a child: sleeps until the body says go.
  void wait() const {
    char byte = 0;
    while (::read(go_[0], &byte, 1) < 0 && errno == EINTR) {
    }
  }
  void go(int times = 1) const {
    for (int i = 0; i < times; ++i) {
      EXPECT_EQ(::write(go_[1], "g", 1), 1);
    }
  }
  // In a child: says its pid, waits, and ends with 0 if `good` then holds.
  template <class Check>
  [[noreturn]] void stay(Check good) const {
    tell(::getpid());
    wait();
    ::_exit(good() ? 0 : 1);
  }
  // The status with which a child ended; -1 if it is no child of ours.
  static int end_of(pid_t pid, int flags = 0) {
    int status = -1;
    return ::waitpid(pid, &status, flags) == pid ? status : -1;
  }

 private:
  int ready_[2] = {-1, -1}, go_[2] = {-1, -1};
};

// A child that runs `work`, which does not return.
template <class Work>
pid_t fork_to(Work work) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    work();
    ::_exit(99);
  }
  return pid;
}

}  // namespace ferry::live
