#include <signal.h>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(Signals, KeepsTheBlockedMask) {
  sigset_t wanted, got;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGUSR1);
  sigaddset(&wanted, SIGRTMAX);
  ASSERT_EQ(::sigprocmask(SIG_SETMASK, &wanted, nullptr), 0);
  checkpoint_here();
  ASSERT_EQ(::sigprocmask(SIG_SETMASK, nullptr, &got), 0);
  for (int signal = 1; signal <= SIGRTMAX; ++signal) {
    EXPECT_EQ(sigismember(&got, signal), sigismember(&wanted, signal)) << "signal " << signal;
  }
}

}  // namespace
}  // namespace ferry::live
