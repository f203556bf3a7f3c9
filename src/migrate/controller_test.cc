#include "migrate/controller.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

namespace ferry::migrate {
namespace {

using Step = Controller::Step;
constexpr double kMiB = 1 << 20;

// A container that writes to pages at random, and a line, both at a steady rate.
struct World {
  double memory = 1024 * kMiB;
  double written_per_ms = 0.1 * kMiB;  // at full speed
  double sent_per_ms = 0.5 * kMiB;
  double scan_ms = 1;
  double round_ms = 1;  // what even an empty one takes besides
};

struct Outcome {
  Step step{};
  int rounds = 0;
  double share = 1;
  double predicted_ms = 0;
  double true_ms = 0;  // that the line takes for what is left
};

Outcome simulate(const World& world, const Controller::Limits& limits) {
  Controller controller(limits);
  Outcome out;
  double dirty = world.memory;
  double elapsed = 0;
  for (;;) {
    const double ms = world.scan_ms + world.round_ms + dirty / world.sent_per_ms;
    elapsed += ms;
    ++out.rounds;
    out.step = controller.after(
        {ms, world.scan_ms, static_cast<std::uint64_t>(dirty), static_cast<std::uint64_t>(dirty)}, elapsed);
    // Written during the round that has just ended, with the share it had then.
    dirty = std::min(world.memory, world.written_per_ms * out.share * ms);
    out.share = controller.share();
    if (out.step == Step::another && !controller.worth_a_round(static_cast<std::uint64_t>(dirty))) {
      out.step = Step::postpone;
    }
    if (out.step == Step::hand_over || out.step == Step::give_up || out.step == Step::postpone) {
      out.predicted_ms = controller.predicted_ms();
      out.true_ms = dirty / world.sent_per_ms;
      return out;
    }
  }
}

// On a busy machine the times of a few pages say nothing of the line.
TEST(Controller, PostponesNothingThatARoundHasJustBroughtWithinTheLimit) {
  constexpr std::uint64_t kKiB = 1024;
  Controller controller({.pause_ms = 20, .may_postpone = true});
  EXPECT_EQ(controller.after({100, 1, 100 * kKiB, 100 * kKiB}, 100), Step::another);
  EXPECT_EQ(controller.after({3, 1, 40 * kKiB, 40 * kKiB}, 103), Step::another);
  EXPECT_EQ(controller.after({15, 1, 39 * kKiB, 39 * kKiB}, 118), Step::hand_over);
  EXPECT_GT(controller.predicted_ms(), 20);
}

TEST(Controller, HandsAnIdleContainerOverAfterTwoRounds) {
  const auto out = simulate({.written_per_ms = 0}, {});
  EXPECT_EQ(out.step, Step::hand_over);
  EXPECT_EQ(out.rounds, 2);
  EXPECT_EQ(out.share, 1);
}

TEST(Controller, BringsAModestWriterDownWithoutSlowingIt) {
  const auto out = simulate({}, {});
  EXPECT_EQ(out.step, Step::hand_over);
  EXPECT_EQ(out.share, 1);
  EXPECT_LE(out.true_ms, 1.5) << "short rounds more would have made the pause shorter";
  EXPECT_NEAR(out.predicted_ms, out.true_ms + 1, 1);
}

TEST(Controller, PostponesAfterOneRoundWhatIsWrittenFasterThanItIsSent) {
  const auto out = simulate({.written_per_ms = kMiB}, {.may_slow = false, .may_postpone = true});
  EXPECT_EQ(out.step, Step::postpone);
  EXPECT_EQ(out.rounds, 1) << "a second round would send all of it in vain";
}

TEST(Controller, PostponesWhatComesDownTooSlowly) {
  const auto out = simulate({.written_per_ms = 0.45 * kMiB}, {.may_slow = false, .may_postpone = true});
  EXPECT_EQ(out.step, Step::postpone);
}

TEST(Controller, PostponesNothingThatFits) {
  const auto out = simulate({}, {.may_slow = false, .may_postpone = true});
  EXPECT_EQ(out.step, Step::hand_over);
  EXPECT_LE(out.true_ms, 20);
}

TEST(Controller, PostponesWhenRoundsAreUsedUp) {
  const auto out = simulate({.written_per_ms = 0.3 * kMiB}, {.rounds = 2, .may_slow = false, .may_postpone = true});
  EXPECT_EQ(out.step, Step::postpone);
  EXPECT_LE(out.rounds, 2);
}

TEST(Controller, SlowsAWriterThatIsFasterThanTheLine) {
  const auto out = simulate({.written_per_ms = kMiB}, {});
  EXPECT_EQ(out.step, Step::hand_over);
  EXPECT_LT(out.share, 0.5);
  EXPECT_GT(out.share, 0.02);
  EXPECT_LE(out.true_ms, 20);
}

TEST(Controller, SlowsAWriterThatComesDownTooSlowly) {
  const auto out = simulate({.written_per_ms = 0.45 * kMiB}, {});
  EXPECT_EQ(out.step, Step::hand_over);
  EXPECT_LT(out.share, 1);
}

TEST(Controller, GivesUpWhereItMayNotSlow) {
  const auto out = simulate({.written_per_ms = kMiB}, {.may_slow = false});
  EXPECT_EQ(out.step, Step::give_up);
  EXPECT_EQ(out.share, 1);
  EXPECT_LE(out.rounds, 10);
}

TEST(Controller, GivesUpWhenEvenTheSlowestIsTooFast) {
  const auto out = simulate({.written_per_ms = 100 * kMiB}, {.rounds = 1000});
  EXPECT_EQ(out.step, Step::give_up);
  EXPECT_LE(out.rounds, 40);
}

TEST(Controller, KeepsToRoundsAndTime) {
  EXPECT_EQ(simulate({.written_per_ms = kMiB}, {.rounds = 3}).rounds, 3);
  EXPECT_EQ(simulate({.written_per_ms = kMiB}, {.rounds = 3}).step, Step::give_up);
  const auto late = simulate({.written_per_ms = kMiB}, {.rounds = 1000, .time_ms = 3000});
  EXPECT_EQ(late.step, Step::give_up);
  EXPECT_EQ(simulate({}, {.rounds = 1}).step, Step::give_up);
}

TEST(Controller, LeavesRoomForWhatThePauseTakesBesides) {
  const World world{.written_per_ms = 0.25 * kMiB, .round_ms = 8};
  const auto without = simulate(world, {.pause_ms = 12});
  const auto with = simulate(world, {.pause_ms = 12, .fixed_ms = 5});
  EXPECT_EQ(with.step, Step::hand_over);
  EXPECT_LE(with.true_ms, 7);
  EXPECT_GE(with.predicted_ms, 5);
  EXPECT_GE(with.rounds, without.rounds);
}

// To find what is written in much memory takes long, and the line is not slow because of that.
TEST(Controller, DoesNotTakeASlowLookForASlowLine) {
  const auto out = simulate({.scan_ms = 20}, {});
  EXPECT_EQ(out.step, Step::hand_over);
  EXPECT_EQ(out.share, 1);
  EXPECT_LE(out.rounds, 8);
  EXPECT_NEAR(out.predicted_ms, out.true_ms + 20, 1.5);
}

// A thousand threads take longer than the limit whatever the memory does: no round helps, and none is wasted.
TEST(Controller, DoesNotWaitForWhatNoRoundCanBring) {
  const auto out = simulate({.written_per_ms = 0}, {.pause_ms = 20, .fixed_ms = 60});
  EXPECT_EQ(out.step, Step::hand_over);
  EXPECT_EQ(out.rounds, 2);
  EXPECT_GE(out.predicted_ms, 60);
}

TEST(Controller, NeverFitsIntoNothing) { EXPECT_EQ(simulate({}, {.pause_ms = 0, .rounds = 5}).step, Step::give_up); }

}  // namespace
}  // namespace ferry::migrate
