// The directories and the log of one operation.
#pragma once

#include "base/error.h"
#include "base/unique_fd.h"
#include "programs/criu/settings.h"

namespace ferry::criu {

// Open directories, the log in place, and the work directory as the current one, as in CRIU: relative
// paths of later options mean it.
//
// The log stays in place after the workplace is gone until the next one is opened; its descriptor is
// the workplace's, so it has to outlive whatever logs.
class Workplace {
 public:
  // Errors: os, gone or denied, naming the directory or the log file; nothing is logged then.
  static Result<Workplace> open(const Settings& settings);

  Workplace(Workplace&& other) noexcept = default;
  Workplace& operator=(Workplace&&) = delete;
  // Further lines go to stderr, where they went before.
  ~Workplace();

  [[nodiscard]] int images() const { return images_.get(); }
  [[nodiscard]] int work() const { return work_ ? work_.get() : images_.get(); }

 private:
  Workplace() = default;
  UniqueFd images_;
  UniqueFd work_;  // unset: the images directory
  UniqueFd log_;
};

}  // namespace ferry::criu
