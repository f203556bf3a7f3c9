// What semop(2) is to undo when a process ends (SEM_UNDO): an adjustment for each semaphore, in a list that the threads
// of a process share.  No file and no call tells of it, so it is read from the kernel's memory (sys/kernel_memory.h).
// Source: semop(2); clone(2), CLONE_SYSVSEM; ipc/sem.c.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/unique_fd.h"
#include "image/proto/core.pb.h"
#include "state/inside.h"
#include "state/ipc/sysv.h"
#include "sys/kernel_memory.h"

namespace ferry::tracee {
class Batch;
}  // namespace ferry::tracee

namespace ferry::state {
struct DumpContext;
struct RestoreContext;
struct RestoreTask;
}  // namespace ferry::state

namespace ferry::state::ipc {

class Undos {
 public:
  // Before the freeze: gets ready if the namespace of `inside` has a set of semaphores at all, because to read the
  // kernel's type information takes tens of milliseconds.
  Result<void> prepare(Inside& inside);
  // In the freeze: gives every task of a namespace its adjustments.  `inside`: a thread that has joined it; `sets`: all
  // that it has.
  // Errors: unsupported, where a list is not that of one process, or its threads have several.  A kernel that does not
  // show them to us is believed to have none, which is said in the log.
  Result<void> collect(DumpContext& context, std::uint32_t ns, Inside& inside, const std::vector<Semaphores>& sets);

 private:
  struct Reader {
    UniqueFd program;  // emits a word for each thread, the address of its list
    sys::KernelMemory memory;
    std::uint64_t of_list = 0;                              // sem_undo_list.list_proc
    std::uint64_t in_list = 0, semid = 0, adjustments = 0;  // of sem_undo
    bool inline_adjustments = false;                        // they follow; elsewhere they are pointed to
  };
  using Counts = std::map<std::int32_t, std::uint32_t>;  // semaphores by set
  static Result<Reader> open();
  static Result<std::vector<pb::FerrySemUndo>> read(const Reader& reader, std::uint64_t list, const Counts& counts);

  std::optional<Reader> reader_;
  bool asked_ = false;
};

// Two operations that leave the semaphore as it is and one adjustment behind, in this order.
struct Step {
  std::int16_t first = 0, second = 0;
  bool undo_first = false;  // which of them is the one with SEM_UNDO
};
// How an adjustment comes about on a semaphore that has `value`: without waiting and without leaving the range.
std::vector<Step> steps_to(std::int32_t adjustment, std::int32_t value);

// By the process itself, once the sets have their values, while it still has the privilege to change them.
// Errors: corrupt.
Result<void> restore_undos(const RestoreTask& task, const RestoreContext& context, tracee::Batch& batch);

}  // namespace ferry::state::ipc
