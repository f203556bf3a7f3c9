// A copy of this process that does the last act if we are killed in the middle of it.
//
// What a process has in its memory, and the descriptors it holds, cannot be written down for a guard.  A child by
// fork(2) has both.
#pragma once

#include <sys/types.h>

#include <functional>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

class Understudy {
 public:
  // The copy begins with `at_once` and runs `at_death`, with all signals held back, when this process has ended
  // before take_the_stage(); `late` when it ended after that.  It leaves by _exit(2).
  static Result<Understudy> post(const std::function<void()>& at_once, const std::function<void()>& at_death,
                                 const std::function<void()>& late);
  Understudy(Understudy&& other) noexcept;
  Understudy& operator=(Understudy&&) = delete;
  ~Understudy();  // dismisses it
  // From here on nobody else does it.
  void take_the_stage();

 private:
  Understudy(pid_t child, UniqueFd pipe, int* begun) : child_(child), pipe_(std::move(pipe)), begun_(begun) {}
  pid_t child_;
  UniqueFd pipe_;
  int* begun_;  // in a page that both have
};

}  // namespace ferry::migrate
