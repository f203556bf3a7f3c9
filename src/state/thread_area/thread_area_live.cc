#include <linux/futex.h>
#include <pthread.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(ThreadArea, KeepsTheRobustList) {
  void* head = nullptr;
  std::size_t size = 0;
  ASSERT_EQ(::syscall(SYS_get_robust_list, 0, &head, &size), 0);
  ASSERT_NE(head, nullptr);
  checkpoint_here();
  void* got = nullptr;
  ASSERT_EQ(::syscall(SYS_get_robust_list, 0, &got, &size), 0);
  EXPECT_EQ(got, head);
}

LIVE_TEST(ThreadArea, AnOwnerWhoDiesIsStillNoticed) {
  // What the robust list is for: a mutex whose holder ended is handed on with EOWNERDEAD.
  static pthread_mutex_t mutex;
  pthread_mutexattr_t attr;
  ::pthread_mutexattr_init(&attr);
  ::pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
  ASSERT_EQ(::pthread_mutex_init(&mutex, &attr), 0);
  std::atomic<int> stage{0};
  std::thread thread([&] {
    ::pthread_mutex_lock(&mutex);
    stage = 1;
    while (stage == 1) {
      ::sched_yield();
    }
  });
  while (stage == 0) {
    ::sched_yield();
  }
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_EQ(::pthread_mutex_lock(&mutex), EOWNERDEAD);
}

LIVE_TEST(ThreadArea, JoiningAThreadWakesUp) {
  // pthread_join waits for the kernel to clear the thread's id at its end: set_tid_address(2).
  std::atomic<int> stage{0};
  std::thread thread([&] {
    stage = 1;
    while (stage == 1) {
      ::sched_yield();
    }
  });
  while (stage == 0) {
    ::sched_yield();
  }
  checkpoint_here();
  stage = 2;
  thread.join();
  EXPECT_EQ(::syscall(SYS_gettid), ::getpid());
}

LIVE_TEST(ThreadArea, RestartableSequencesGoOn) {
  if (__rseq_size == 0) {
    GTEST_SKIP() << "the C library registered no rseq area";
  }
  auto* area = reinterpret_cast<struct rseq*>(static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset);
  checkpoint_here();
  // A second registration is refused exactly as long as the first one holds (rseq(2): EBUSY).
  EXPECT_EQ(::syscall(SYS_rseq, area, 32, 0, RSEQ_SIG), -1);
  EXPECT_EQ(errno, EBUSY);
  EXPECT_LT(static_cast<long>(area->cpu_id), ::sysconf(_SC_NPROCESSORS_CONF));
}

}  // namespace
}  // namespace ferry::live
