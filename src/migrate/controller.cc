#include "migrate/controller.h"

#include <algorithm>
#include <array>

namespace ferry::migrate {
namespace {

// Large enough for its time to be that of the line, not of waking up and answering.
constexpr std::uint64_t kTellsBandwidth = 64U << 20;
// A smaller one can show that the line is faster than believed, and only little by little that it is slower.
constexpr std::uint64_t kHintsAtBandwidth = 2U << 20;
constexpr double kDoubt = 0.9;
// A round that leaves more than this of what the one before left does not get far.
constexpr double kProgress = 0.7;
constexpr int kStandingBeforeSlower = 2;  // rounds in a row
constexpr int kStandingBeforeGivingUp = 4;
// What fits already may be brought down further by rounds that are short anyway.
constexpr int kExtraRounds = 3;
// So little is no reason to have memory on two hosts.
constexpr std::uint64_t kNotWorthPostponing = 256U << 10;
constexpr double kNotWorthARound = 1;  // ms of the pause
// The share of the pause that memory may always have: what the rest of it takes, no round makes shorter.
constexpr double kMemoryShare = 0.5;
constexpr std::array kShares{1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02};

}  // namespace

double Controller::share() const { return kShares.at(slowed_); }

bool Controller::comes_down(std::uint64_t dirty) const {
  return static_cast<double>(dirty) <= kProgress * static_cast<double>(last_.dirty);
}

bool Controller::fits(double memory_ms) const {
  return memory_ms <= std::max(limits_.pause_ms - fixed_ms(), kMemoryShare * limits_.pause_ms);
}

// What can be fetched later is not sent in vain: a whole round is as long as fetching all of it.
bool Controller::worth_a_round(std::uint64_t dirty) const {
  return !limits_.may_postpone || rounds_ == 0 || dirty <= kNotWorthPostponing || comes_down(dirty) ||
         fits(static_cast<double>(dirty) / bytes_per_ms_);
}

void Controller::learn_bandwidth(const RoundFacts& round) {
  const double now =
      static_cast<double>(std::max<std::uint64_t>(round.wire, 1)) / std::max(round.ms - round.scan_ms, 0.01);
  if (bytes_per_ms_ == 0 || round.wire >= kTellsBandwidth) {
    bytes_per_ms_ = now;
  } else if (round.wire >= kHintsAtBandwidth) {
    bytes_per_ms_ = std::max(now, kDoubt * bytes_per_ms_);
  }
}

Controller::Step Controller::after(const RoundFacts& round, double elapsed_ms) {
  ++rounds_;
  learn_bandwidth(round);
  const bool first = rounds_ == 1;
  // What was sent now had been written while the round before was on its way; the same goes for this one.  The
  // first has no such past: nothing is known of how much is written.
  const double rate = first ? 0 : static_cast<double>(round.dirty) / std::max(last_.ms, 0.01);
  memory_ms_ = rate * round.ms / bytes_per_ms_;
  const bool down = !first && comes_down(round.dirty);
  standing_ = first || down ? 0 : standing_ + 1;
  last_ = round;
  const Step last_resort = limits_.may_postpone ? Step::postpone : Step::give_up;
  if (first) {
    return limits_.rounds > 1 ? Step::another : last_resort;
  }
  if (fits(memory_ms_)) {
    const bool worth_it = down && memory_ms_ > kNotWorthARound && ++extra_ <= kExtraRounds && rounds_ < limits_.rounds;
    return worth_it ? Step::another : Step::hand_over;
  }
  if (limits_.may_postpone && round.dirty <= kNotWorthPostponing && round.ms <= limits_.pause_ms) {
    // What is believed of the line comes from a few pages; that they cross within the limit has just been seen.
    return Step::hand_over;
  }
  if (rounds_ >= limits_.rounds || elapsed_ms > limits_.time_ms) {
    return last_resort;
  }
  if (limits_.may_postpone && standing_ > 0) {
    return Step::postpone;
  }
  if (limits_.may_slow && slowed_ + 1 < kShares.size() && standing_ >= kStandingBeforeSlower) {
    ++slowed_;
    standing_ = 0;
    return Step::slower;
  }
  return standing_ >= kStandingBeforeGivingUp ? Step::give_up : Step::another;
}

}  // namespace ferry::migrate
