// A limit for what leaves this host in a second, shared by all connections of a move.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>

namespace ferry::migrate {

class Pace {
 public:
  using Clock = std::chrono::steady_clock;
  explicit Pace(std::uint64_t bytes_per_second) : bytes_per_second_(bytes_per_second) {}

  // Books so many bytes; the value is when they may leave.  What was not used stays usable for a quarter of a
  // second, so that a sender who came late catches up, and no more than that leaves at once.
  Clock::time_point book(Clock::time_point now, std::uint64_t bytes);
  // From now on everything may leave at once: the pause is not to take longer for it.
  void lift();

 private:
  const std::uint64_t bytes_per_second_;
  std::mutex lock_;
  bool lifted_ = false;
  Clock::time_point free_from_{};  // everything booked has left by then
};

}  // namespace ferry::migrate
