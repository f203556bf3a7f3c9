#include "state/ipc/undo.h"

#include <gtest/gtest.h>

namespace ferry::state::ipc {
namespace {

constexpr int kMost = 32767;  // SEMVMX

// Plays the steps as the kernel does; every operation has to be possible at once.
int adjustment_after(const std::vector<Step>& steps, int value) {
  int now = value, adjustment = 0;
  const auto operate = [&](int by, bool undone) {
    now += by;
    EXPECT_GE(now, 0);
    EXPECT_LE(now, kMost);
    adjustment -= undone ? by : 0;
    EXPECT_LE(std::abs(adjustment), kMost + 1);
  };
  for (const Step& step : steps) {
    operate(step.first, step.undo_first);
    operate(step.second, !step.undo_first);
  }
  EXPECT_EQ(now, value);
  return adjustment;
}

TEST(SemUndo, EveryAdjustmentComesAboutAtEveryValue) {
  for (const int value : {0, 1, 2, 100, 16383, 16384, 20000, 32766, 32767}) {
    for (const int adjustment : {-32768, -32767, -20000, -2, -1, 0, 1, 2, 16384, 20000, 32766, 32767}) {
      EXPECT_EQ(adjustment_after(steps_to(adjustment, value), value), adjustment) << "at " << value;
    }
  }
}

TEST(SemUndo, NoneTakesNoSteps) { EXPECT_TRUE(steps_to(0, 5).empty()); }

}  // namespace
}  // namespace ferry::state::ipc
