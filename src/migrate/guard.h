// A process that outlives us and puts things right if we die with work half done.
//
// It sleeps on a pipe whose other end only we hold.  When we end without having dismissed it (SIGKILL,
// out of memory), the kernel closes our end, and the guard does what the last lines told it to.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::migrate {

class Guard {
 public:
  using Lines = std::vector<std::string>;
  // To be called while this process has a single thread, because it forks.  `at_death` runs in the
  // guard: in a session of its own, with all descriptors closed and the standard ones on /dev/null.
  static Result<Guard> post(const std::function<void(const Lines&)>& at_death);
  Guard(Guard&&) = default;
  Guard& operator=(Guard&&) = delete;
  ~Guard() = default;
  // Everything is right, or was never touched.  Without this the guard acts when we end, however we do.
  void dismiss();

  // A line it will have to know; without a newline.
  Result<void> tell(std::string_view line);

 private:
  explicit Guard(UniqueFd pipe) : pipe_(std::move(pipe)) {}
  UniqueFd pipe_;
};

}  // namespace ferry::migrate
