// A point in time until which something may take; every wait of ferry has one.
#pragma once

#include <chrono>

namespace ferry::tracee {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;
  explicit Deadline(Clock::duration from_now) : at_(Clock::now() + from_now) {}
  [[nodiscard]] Clock::duration left() const { return at_ - Clock::now(); }
  [[nodiscard]] bool passed() const { return left() <= Clock::duration::zero(); }

 private:
  Clock::time_point at_;
};

}  // namespace ferry::tracee
