// Memory policies: from which nodes of a NUMA machine a thread or a mapping gets its memory.
//
// A policy that names only nodes which this host does not have is left out with a warning: there is no memory that it
// could ask for.  Not kept: the preferred node of set_mempolicy_home_node(2), which no call tells, and policies of
// shared memory that change within one mapping.
// Source: set_mempolicy(2), mbind(2), get_mempolicy(2), Documentation/admin-guide/mm/numa_memory_policy.rst.
#pragma once

#include "image/proto/mm.pb.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::numa {

// So many mappings are asked for in one batch, which has to fit into the task's area.
constexpr std::size_t kAtOnce = 8192;

// Of the mappings from number `first` of the task on, up to kAtOnce of them.
Answers ask(DumpTask& task, std::size_t first, tracee::Batch& batch);
// Of the thread itself.  A thread that has a policy is like no other (sys/task_look.h): each is asked.
Answers ask_thread(DumpThread& thread, tracee::Batch& batch);

// To be called before the memory is filled: a page stays where it was allocated.
Result<void> restore(const RestoreTask& task, tracee::Batch& batch);
Result<void> restore_thread(const RestoreTask& task, const RestoreThread& thread, tracee::Batch& batch);

// Whether a machine with these nodes, one bit each, has one of the policy's.
bool is_possible(const pb::FerryMemoryPolicy& policy, std::span<const std::byte> nodes);

}  // namespace ferry::state::numa
