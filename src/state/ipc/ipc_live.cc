#include <sched.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
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

// A segment, a set of semaphores and a queue of messages, which have the same keys in every new namespace, and mostly
// the same numbers.
struct Objects {
  int segment = -1, set = -1, queue = -1;
  char* attached = nullptr;

  bool make(const std::string& mark) {
    segment = ::shmget(0x51, 8192, IPC_CREAT | IPC_EXCL | 0600);
    set = ::semget(0x52, 1, IPC_CREAT | IPC_EXCL | 0600);
    queue = ::msgget(0x53, IPC_CREAT | IPC_EXCL | 0600);
    attached = static_cast<char*>(::shmat(segment, nullptr, 0));
    if (segment < 0 || set < 0 || queue < 0 || attached == reinterpret_cast<char*>(-1)) {
      return false;
    }
    std::strcpy(attached + 5'000, mark.c_str());
    Message message{1, {}};
    std::strcpy(message.text, mark.c_str());
    return ::semctl(set, 0, SETVAL, static_cast<int>(mark.size())) == 0 &&
           ::msgsnd(queue, &message, sizeof message.text, 0) == 0;
  }
  // 0: they are there, and hold the mark.
  [[nodiscard]] int check(const std::string& mark) const {
    Message got{};
    if (::shmget(0x51, 0, 0) != segment || ::semget(0x52, 0, 0) != set || ::msgget(0x53, 0) != queue) {
      return 1;
    }
    if (mark != attached + 5'000) {
      return 2;
    }
    if (::semctl(set, 0, GETVAL) != static_cast<int>(mark.size())) {
      return 3;
    }
    return ::msgrcv(queue, &got, sizeof got.text, 0, IPC_NOWAIT) > 0 && mark == got.text ? 0 : 4;
  }

 private:
  struct Message {
    long type;
    char text[16];
  };
};

LIVE_TEST(SysvIpc, ANamespaceOfASingleProcessKeepsItsOwnObjects) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  Objects outer;
  Objects inner;
  int other_set = -1;
  Child child = Child(
      [&] {
        return ::unshare(CLONE_NEWIPC) == 0 && inner.make("inner") && (other_set = make_set({4, 9})) >= 0 &&
               operate(other_set, 1, -3, SEM_UNDO);
      },
      [&] {
        return values_of(other_set, 2) == std::vector<int>{4, 6} ? inner.check("inner") : 5;
      });
  // In the other order: the same numbers stand for something else.
  ASSERT_TRUE(outer.make("the outer one"));

  checkpoint_here();

  EXPECT_EQ(outer.check("the outer one"), 0);
  EXPECT_EQ(child.verdict(), 0);
}

// It has the segment of its parent, whose namespace it has left.
LIVE_TEST_WITH(SysvIpc, RefusesASegmentOfANamespaceThatWasLeft, {.refused = "has a System V segment attached (at"}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  Objects outer;
  ASSERT_TRUE(outer.make("outer"));
  Child child = Child([] { return ::unshare(CLONE_NEWIPC) == 0; }, [] { return 0; });

  checkpoint_here();

  EXPECT_EQ(child.verdict(), 0);
}

LIVE_TEST_WITH(SysvIpc, RefusesASegmentOfANamespaceThatAllHaveLeft,
               {.refused = "has a System V segment attached (at"}) {
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);
  Objects left;
  ASSERT_TRUE(left.make("left"));
  ASSERT_EQ(::unshare(CLONE_NEWIPC), 0);

  checkpoint_here();

  EXPECT_STREQ(left.attached + 5'000, "left");
}

}  // namespace
}  // namespace ferry::live
