// From images to skeletons: stopped processes with the right numbers, parents and sessions, and
// nothing in them.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "base/error.h"
#include "state/memory/inheritance.h"
#include "state/memory/memory.h"
#include "state/restore.h"

namespace ferry::engine {

// The tasks of a set, parents first, each with its messages.  Errors: corrupt, naming file and pid.
Result<std::vector<std::unique_ptr<state::RestoreTask>>> read_tree(const image::Set& set);

// What a skeleton is made with.
struct RootRequest {
  NsPid pid;                         // its number in the innermost namespace
  std::uint64_t clone_flags = 0;     // CLONE_NEW*
  std::optional<int> pid_namespace;  // to be born in, not owned; instead of CLONE_NEWPID
  int controller = -1;               // pidfd of who will dress the tree; -1: this process
  bool sibling = false;              // child of our parent: clone(2) CLONE_PARENT
};
// Forks the root skeleton: seized, stopped, with a pidfd of ours in its table; dies with us.
// Errors: os with EEXIST if the pid is taken, by name.
Result<void> make_root(const RootRequest& request, state::RestoreTask& root);

// Seizes the only thread of a process that is to be dressed, still running; it dies with us from then on.
Result<tracee::Thread> seize_root(HostPid pid);
// The same options without PTRACE_O_EXITKILL: PTRACE_O_TRACESYSGOOD and PTRACE_O_SUSPEND_SECCOMP.
inline constexpr unsigned long kOutlivingOptions = 1UL | 1UL << 21;
// Stops it and makes it the root skeleton.
Result<void> stop_root(tracee::Thread thread, state::RestoreTask& root);

inline constexpr std::size_t kParkSize = 1U << 20;

// Where the batch area and the kernel's mappings of every skeleton are.
struct Layout {
  tracee::Area area;
  std::uint64_t park = 0;  // room for the kernel's mappings on their way
  state::memory::KernelMappings kernel;
  // All of it, and the park.
  [[nodiscard]] std::vector<sys::PageRange> taken() const;
};
// Maps the batch area into the root skeleton and removes everything else from it.
Result<Layout> clear_root(state::RestoreContext& context);

// Errors: unsupported if a task of the set has a mapping where the area is.
Result<void> check_layout(const state::RestoreContext& context, const Layout& layout);

// Clones all other processes, each from the skeleton that it inherits its session from, with
// process groups and zombies.  `inheritance`: what they are to have in common with who makes them.
// Errors: unsupported, for a tree that cannot be born again.
Result<void> grow_tree(state::RestoreContext& context, const Layout& layout,
                       state::memory::Inheritance* inheritance = nullptr);

// All threads but the leader, with their numbers, in the same process.
Result<void> make_threads(state::RestoreTask& task);

// Kills what was made so far.  Safe to call at any time.
void kill_skeletons(std::vector<std::unique_ptr<state::RestoreTask>>& tasks);

}  // namespace ferry::engine
