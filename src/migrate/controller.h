// When to stop sending memory ahead: after every round it says what comes next.
//
// It knows only what the rounds told it, so that it can be tried on a simulated line.
#pragma once

#include <cstdint>
#include <deque>

namespace ferry::migrate {

struct RoundFacts {
  double ms = 0;            // until all of it had arrived
  double scan_ms = 0;       // of that, for finding what had been written
  std::uint64_t dirty = 0;  // bytes that had been written since the round before began; in the first all there are
  std::uint64_t wire = 0;   // bytes that crossed
};

class Controller {
 public:
  struct Limits {
    double pause_ms = 20;  // as long as the pause may take
    double fixed_ms = 0;   // what the pause takes besides memory, as far as that is known
    int rounds = 30;
    double time_ms = 600'000;
    bool may_slow = true;       // the container
    bool may_postpone = false;  // what is left may be fetched after the hand-over
  };
  enum class Step {
    another,  // round
    slower,   // and another round: the container runs on with share()
    hand_over,
    postpone,  // the rest until after the hand-over: no round brings it down
    give_up,   // rounds or time are used up, or nothing brings the rest down
  };

  explicit Controller(const Limits& limits) : limits_(limits) {}
  // `elapsed_ms`: since the first round began.
  Step after(const RoundFacts& round, double elapsed_ms);
  // Asked between two rounds: whether another one is worth its time, when so much has been written during the last.
  [[nodiscard]] bool worth_a_round(std::uint64_t dirty) const;

  // How long the pause would be, were the container stopped now.
  [[nodiscard]] double predicted_ms() const { return memory_ms_ + fixed_ms(); }
  // Of its processor time that the container gets: 1 is all of it.
  [[nodiscard]] double share() const;

 private:
  [[nodiscard]] bool comes_down(std::uint64_t dirty) const;
  [[nodiscard]] bool fits(double memory_ms) const;
  // What written memory adds nothing to.
  [[nodiscard]] double fixed_ms() const { return limits_.fixed_ms + last_.scan_ms; }
  void learn_bandwidth(const RoundFacts& round);

  Limits limits_;
  int rounds_ = 0;
  RoundFacts last_;
  double bytes_per_ms_ = 0;
  double memory_ms_ = 0;    // for what will have been written by the end of the round
  int standing_ = 0;        // rounds in a row that did not bring the rest down
  int extra_ = 0;           // rounds since it would have fitted
  std::size_t slowed_ = 0;  // how often
};

}  // namespace ferry::migrate
