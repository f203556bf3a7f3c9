// Who takes our area out of a stopped process if we are killed while it is there.
//
// While the processes of a tree are asked (a few hundred microseconds), an area for the questions is mapped in each
// (tracee/process.h).  A process of ours, forked before the tree is stopped, waits for our end.  If that comes before
// the areas are given back, it stops the processes again and unmaps them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "tracee/process.h"

namespace ferry::engine {

class Caretaker {
 public:
  Caretaker() = default;
  // Forks.  Errors: os.
  static Result<Caretaker> start();
  Caretaker(Caretaker&& other) noexcept;
  Caretaker& operator=(Caretaker&& other) noexcept;
  // Nothing is lent any more: ends it.
  ~Caretaker();

  // The process has `area` from now on, or soon: to be called before it is mapped, because we may be killed right
  // after that.  `start_time`: with the pid its identity, in ticks (proc_pid_stat(5)).
  // `mask`: what its leader blocks; a call of ours that is cut off leaves everything blocked.  `vdso`: where a syscall
  // instruction is to be found.
  void lend(HostPid pid, std::uint64_t start_time, const tracee::Area& area, std::uint64_t mask, std::uint64_t vdso,
            std::uint64_t vdso_size);
  // It has given it back.  In the order in which they were lent, so that nobody is searched for while all are stopped.
  void returned(HostPid pid);

 private:
  struct Loan {
    std::int32_t pid = 0;  // 0: none
    std::uint64_t start_time = 0;
    tracee::Area area;
    std::uint64_t mask = 0;
    std::uint64_t vdso = 0, vdso_size = 0;
  };
  static constexpr std::size_t kLoans = 16384;  // of a tree with more processes the rest is not cared for
  struct Ledger;
  [[noreturn]] static void serve(const Ledger& ledger, int life);
  static Result<bool> take_back(const Loan& loan);

  Ledger* ledger_ = nullptr;  // in memory that both see
  std::size_t next_ = 0;      // to be given back
  UniqueFd life_;             // whose other end says that we are gone
  pid_t child_ = -1;
};

}  // namespace ferry::engine
