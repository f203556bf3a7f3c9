// A child of a live test's body, which goes through the checkpoint with it.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace ferry::live {

// Prepares something, and judges it when it is told to: with zero if it is right.
class Child {
 public:
  Child(const std::function<bool()>& prepare, const std::function<int()>& judge) {
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends_), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      char byte = prepare() ? 'y' : 'n';
      if (::write(ends_[1], &byte, 1) != 1 || ::read(ends_[1], &byte, 1) != 1) {
        ::_exit(90);
      }
      ::_exit(judge());
    }
    char byte = 0;
    EXPECT_EQ(::read(ends_[0], &byte, 1), 1);
    EXPECT_EQ(byte, 'y') << "the child could not prepare";
  }
  // Ends it.
  int verdict() {
    EXPECT_EQ(::write(ends_[0], "j", 1), 1);
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  int ends_[2] = {-1, -1};
  pid_t pid_ = -1;
};

}  // namespace ferry::live
