// Every thread of a process as the kernel itself holds it, in one read: for thousands of threads, of which a
// file of procfs each (status takes 13 us, a namespace 5) or a question to each would be what a freeze consists of.
//
// A task iterator of BPF emits a few words of each thread.  What they mean is not interpreted where that would
// take knowledge of the kernel's private flags: equal words mean equal answers to the questions that are then
// put to one thread of many.
// Source: Documentation/bpf/bpf_iterators.rst; iterators over one process's threads since Linux 6.1.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace ferry::sys {

// The words are laid out as the program emits them, eight bytes each.
struct TaskWords {
  std::uint64_t tid = 0;     // in the first pid namespace
  std::uint64_t ns_tid = 0;  // in its own
  // Value is what a question would answer.
  std::uint64_t stack_base = 0, stack_size = 0, stack_flags = 0;  // sigaltstack(2)
  std::uint64_t death_signal = 0;                                 // PR_GET_PDEATHSIG
  std::uint64_t clear_child_tid = 0;                              // PR_GET_TID_ADDRESS
  std::uint64_t robust_list = 0;                                  // get_robust_list(2)
  std::uint64_t timer_slack = 0;                                  // PR_GET_TIMERSLACK
  std::uint64_t pending = 0;                                      // its own queue of signals
  std::array<char, 16> name{};                                    // PR_GET_NAME
  std::uint64_t task = 0, first_child = 0;
  std::uint64_t children_offset = 0;  // of the list's head in the task; filled in by TaskLook
  [[nodiscard]] bool has_children() const { return first_child != task + children_offset; }
  // Only to be compared.
  struct Nature {
    std::uint64_t credentials = 0, namespaces = 0, groups = 0;  // objects of the kernel, shared by most threads
    std::uint64_t seccomp_mode = 0, seccomp_filter = 0;
    std::uint64_t flags = 0, atomic_flags = 0, thread_flags = 0, call_work = 0;
    std::uint64_t personality = 0;
    std::array<std::uint64_t, 3> segments{};  // set_thread_area(2)
    std::uint64_t memory_policy = 0;          // each has its own, if any: set_mempolicy(2)
    auto operator<=>(const Nature&) const = default;
  } nature;
};

class TaskLook {
 public:
  TaskLook() = default;
  // Loads the program.  Errors: unsupported or denied, where this kernel does not do that or not for us.
  static Result<TaskLook> open();
  [[nodiscard]] bool is_open() const { return static_cast<bool>(program_); }
  // Opens it at the first call; false where that cannot be.
  bool ready();

  // So many threads that a look costs less than a file for each.
  static constexpr std::size_t kWorthIt = 32;

  // All threads of the process that are not dead yet, the leader first.
  [[nodiscard]] Result<std::vector<TaskWords>> threads_of(HostPid pid) const;
  // Those of them that are known to have no children; empty where that cannot be told.
  [[nodiscard]] std::unordered_set<pid_t> childless_threads_of(HostPid pid) const;

 private:
  UniqueFd program_;
  bool tried_ = false;
  std::uint64_t children_offset_ = 0;
};

}  // namespace ferry::sys
