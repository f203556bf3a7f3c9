#include "migrate/pace.h"

#include <algorithm>

namespace ferry::migrate {
namespace {

constexpr std::chrono::milliseconds kSavings(250);

}  // namespace

Pace::Clock::time_point Pace::book(Clock::time_point now, std::uint64_t bytes) {
  const std::lock_guard<std::mutex> held(lock_);
  if (lifted_) {
    return now;
  }
  const auto begin = std::max(free_from_, now - kSavings);
  const double seconds = static_cast<double>(bytes) / static_cast<double>(bytes_per_second_);
  free_from_ = begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  return std::max(now, free_from_);
}

void Pace::lift() {
  const std::lock_guard<std::mutex> held(lock_);
  lifted_ = true;
}

}  // namespace ferry::migrate
