#include <sched.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include <cstring>

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

}  // namespace
}  // namespace ferry::live
