// A stopped process that can be made to run batches.
//
// The loop and its records live in an area that is mapped for the purpose and unmapped at the end.
// After every call and batch the thread has its own registers and signal mask back, and inside a batch it
// finds its own way back (sigframe.h), as it does from a call where one is known (way_back.h), so this process may die
// at any moment and the target goes on unharmed, the idle area aside.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "tracee/batch.h"
#include "tracee/thread.h"
#include "tracee/way_back.h"

namespace ferry::tracee {

struct Area {
  std::uint64_t base = 0;  // first page: the loop, read and execute; the rest: records and data, read and write
  std::uint64_t size = 0;
  [[nodiscard]] bool mapped() const { return size != 0; }
};

// A signal that is ignored by default and not in `taken` (bit signo-1): what a program catches, or has
// pending.  SIGURG if all are taken.
int quiet_signal(std::uint64_t taken);

class Process {
 public:
  Process() = default;
  // `threads`: all stopped, the leader first.
  static Result<Process> of(HostPid pid, std::vector<Thread> threads);
  Process(Process&&) = default;
  Process& operator=(Process&&) = default;
  // Unmaps the area if it can, then lets go of the threads.
  ~Process();

  [[nodiscard]] HostPid pid() const { return pid_; }
  std::vector<Thread>& threads() { return threads_; }
  Thread& leader() { return threads_.front(); }
  // An open /proc/PID/mem.  It stands for the address space of the time when it was opened.
  [[nodiscard]] int memory() const { return memory_.get(); }
  // To be called after the process has got another address space (a child's, after fork).
  Result<void> reopen_memory();

  // The signal by which a batch says that it is at its end; SIGURG if not told otherwise.  To be one that
  // the kernel ignores by default, and neither caught nor pending in the target.
  void set_end_signal(int signal) { end_signal_ = signal; }
  // How a thread finds back from call() if we die meanwhile.  Without, it would go on from there.
  void set_way_back(const std::optional<WayBack>& way) { way_back_ = way; }
  // A skeleton: nobody minds if it dies with us, so its batches carry no way back.
  void set_disposable() { disposable_ = true; }

  // One system call by `thread`, through ptrace's system call stops: no signal is raised in the target.
  // `at`: address of a syscall instruction, if there is no way back; the area's own if it is mapped and `at` is 0.
  // Returns the raw result, a negative errno on failure.
  Result<std::int64_t> call(Thread& thread, long number, const std::vector<std::uint64_t>& arguments,
                            std::uint64_t at = 0);

  // Maps the area, at `address` if that is not 0.  `vdso`: where to look for a syscall instruction
  // when the leader is not standing behind one.
  Result<void> map_area(std::size_t size, std::uint64_t address, std::uint64_t vdso, std::uint64_t vdso_size);
  // The area that came with a clone of a process that had it.
  void inherit_area(Area area) { area_ = area; }
  [[nodiscard]] const Area& area() const { return area_; }
  // Last act of `thread` in the target: munmap by a syscall instruction outside the area.
  Result<void> unmap_area(Thread& thread, std::uint64_t syscall_at);
  // A syscall instruction outside the area: behind which the leader stands, or in the vDSO.
  Result<std::uint64_t> find_syscall(std::uint64_t vdso, std::uint64_t vdso_size);

  // Unmaps the area if it is mapped, by way of find_syscall.
  Result<void> give_back();

  struct Job {
    Thread* thread;
    const Batch* batch;
  };
  // Errors: the first `must` record that failed, by name; gone if a thread died.
  Result<Replies> run(Thread& thread, const Batch& batch);
  // Lets a thread go into a batch that it does not come back from (exit_group(2)).
  Result<void> start(Thread& thread, const Batch& batch);
  // Lets a thread go for good into a batch, with every signal blocked; the area stays.
  Result<void> leave_in(Thread& thread, const Batch& batch);
  // All at once, each thread its own batch.
  Result<std::vector<Replies>> run_all(std::span<const Job> jobs);

  // Skeletons side by side, each its own batch: while one runs, the next is prepared.  Answers are not kept.
  struct Work {
    Process* process;
    const Batch* batch;  // for the leader
  };
  static Result<void> run_side_by_side(std::span<const Work> work);
  struct Unmapping {
    Process* process;
    std::uint64_t syscall_at;  // as unmap_area wants it
  };
  static Result<void> unmap_side_by_side(std::span<const Unmapping> work);

 private:
  // Places a batch and points the thread at it.
  Result<void> aim(Thread& thread, const Batch& batch);
  struct Running;
  // `skeleton`: registers to start from where nobody wants back what the thread had.
  static Result<void> enter(Running& running);
  Result<void> prepare(const Job& job, Running& running, std::uint64_t base, std::vector<std::byte>& image,
                       const Registers* skeleton) const;
  Result<void> await_batch(Running& running, const Deadline& deadline) const;
  Result<Replies> collect(const Running& running, std::span<const std::byte> image) const;

  HostPid pid_;
  std::vector<Thread> threads_;
  UniqueFd memory_;
  Area area_;
  int end_signal_ = 23;  // SIGURG
  bool disposable_ = false;
  std::optional<WayBack> way_back_;
  std::uint64_t vdso_ = 0, vdso_size_ = 0;  // as map_area was told
};

}  // namespace ferry::tracee
