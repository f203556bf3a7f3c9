#include <sched.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "live/child.h"
#include "live/live.h"

namespace ferry::live {
namespace {

LIVE_TEST(SysvIpc, KeepsObjectsWithNumbersAndContent) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  // A removed segment leaves a gap in the numbers.
  const int gone = ::shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
  const int segment = ::shmget(0x1234, 10'000, IPC_CREAT | 0640);
  ASSERT_GE(segment, 0);
  ASSERT_EQ(::shmctl(gone, IPC_RMID, nullptr), 0);
  auto* memory = static_cast<char*>(::shmat(segment, nullptr, 0));
  ASSERT_NE(memory, reinterpret_cast<char*>(-1));
  std::strcpy(memory + 9'000, "near the end");
  ASSERT_EQ(::shmdt(memory), 0);
  const int semaphores = ::semget(0x77, 3, IPC_CREAT | 0600);
  ASSERT_GE(semaphores, 0);
  ASSERT_EQ(::semctl(semaphores, 1, SETVAL, 30'000), 0);
  const int queue = ::msgget(0x88, IPC_CREAT | 0600);
  ASSERT_GE(queue, 0);
  struct Message {
    long type;
    char text[8];
  };
  for (const Message& message : {Message{5, "first"}, Message{3, "second"}}) {
    ASSERT_EQ(::msgsnd(queue, &message, sizeof message.text, 0), 0);
  }

  checkpoint_here();

  EXPECT_EQ(::shmget(0x1234, 0, 0), segment);
  memory = static_cast<char*>(::shmat(segment, nullptr, SHM_RDONLY));
  ASSERT_NE(memory, reinterpret_cast<char*>(-1));
  EXPECT_STREQ(memory + 9'000, "near the end");
  EXPECT_EQ(::semctl(semaphores, 1, GETVAL), 30'000);
  Message got{};
  ASSERT_EQ(::msgrcv(queue, &got, sizeof got.text, 0, IPC_NOWAIT), 8);
  EXPECT_EQ(got.type, 5);
  EXPECT_STREQ(got.text, "first");
  ASSERT_EQ(::msgrcv(queue, &got, sizeof got.text, 3, IPC_NOWAIT), 8);
  EXPECT_STREQ(got.text, "second");
}

// A set of semaphores with these values.
int make_set(const std::vector<int>& values) {
  const int set = ::semget(IPC_PRIVATE, static_cast<int>(values.size()), IPC_CREAT | 0600);
  EXPECT_GE(set, 0);
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(::semctl(set, static_cast<int>(i), SETVAL, values[i]), 0);
  }
  return set;
}

std::vector<int> values_of(int set, int count) {
  std::vector<int> out;
  for (int i = 0; i < count; ++i) {
    out.push_back(::semctl(set, i, GETVAL));
  }
  return out;
}

bool operate(int set, int number, int by, int flags) {
  sembuf operation{static_cast<unsigned short>(number), static_cast<short>(by), static_cast<short>(flags | IPC_NOWAIT)};
  return ::semop(set, &operation, 1) == 0;
}

// Does this work, and holds what it took until it is told to end.
Child holder(const std::function<bool()>& work) {
  return Child(work, [] { return 0; });
}

// semop(2), SEM_UNDO: in two sets, up and down, at both ends of the range, by two processes, one of which has a thread
// that did a part of it, and is somebody else since then.
LIVE_TEST(SysvIpc, AProcessThatEndsGivesBackWhatItTook) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  const int gone = make_set({1});
  const int one = make_set({5, 32'767, 0, 7});
  const int other = make_set({10, 100});
  Child first = holder([&] {
    bool by_thread = false;
    std::thread([&] { by_thread = operate(one, 0, -2, SEM_UNDO); }).join();
    return by_thread && operate(one, 1, -32'767, SEM_UNDO) && operate(one, 2, 32'767, SEM_UNDO) &&
           operate(other, 1, -40, SEM_UNDO) && operate(gone, 0, -1, SEM_UNDO) && ::setresuid(1234, 1234, 1234) == 0;
  });
  Child second = holder([&] { return operate(other, 0, 3, SEM_UNDO) && operate(other, 1, -1, SEM_UNDO); });
  ASSERT_EQ(::semctl(gone, 0, IPC_RMID), 0);
  const std::vector<int> held{3, 0, 32'767, 7};
  ASSERT_EQ(values_of(one, 4), held);

  checkpoint_here();

  EXPECT_EQ(values_of(one, 4), held);
  EXPECT_EQ(values_of(other, 2), (std::vector<int>{13, 59}));
  EXPECT_EQ(second.verdict(), 0);
  EXPECT_EQ(values_of(one, 4), held);
  EXPECT_EQ(values_of(other, 2), (std::vector<int>{10, 60}));
  EXPECT_EQ(first.verdict(), 0);
  EXPECT_EQ(values_of(one, 4), (std::vector<int>{5, 32'767, 0, 7}));
  EXPECT_EQ(values_of(other, 2), (std::vector<int>{10, 100}));
}

}  // namespace
}  // namespace ferry::live
