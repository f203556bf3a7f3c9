// What the steps of a story took, for the log and for reports.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/log.h"

namespace ferry {

struct Lap {
  std::string name;
  double ms = 0;
};

class Laps {
 public:
  // Everything since the last call, or since the beginning.
  void add(std::string name) {
    const auto now = Clock::now();
    laps_.push_back({std::move(name), std::chrono::duration<double, std::milli>(now - last_).count()});
    log::debug("{}: {:.0f} us", laps_.back().name, laps_.back().ms * 1000);
    last_ = now;
  }
  // What passes until now belongs to no step.
  void skip() { last_ = Clock::now(); }
  [[nodiscard]] const std::vector<Lap>& all() const { return laps_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_ = Clock::now();
  std::vector<Lap> laps_;
};

}  // namespace ferry
