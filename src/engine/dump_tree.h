// A stopped tree as the rooms see it: procfs read, numbers of the pid namespace, shared objects.
#pragma once

#include <memory>
#include <vector>

#include "base/error.h"
#include "state/dump.h"
#include "sys/mapping_look.h"
#include "tracee/stop_tree.h"

namespace ferry::engine {

// Takes the stopped tasks over.  Adds pstree, core-*, ids-* and mm-* entries to the set, with what is
// known from procfs.  `look`: for processes of many threads; may be closed.  `mappings`: has expected them.
// Errors: unsupported if processes share what an image cannot say they share.
Result<std::vector<std::unique_ptr<state::DumpTask>>> build_dump_tree(std::vector<tracee::StoppedTask> stopped,
                                                                      const state::DumpOptions& options,
                                                                      const sys::TaskLook& look,
                                                                      sys::MappingLook& mappings, image::Set& set);

// Fills DumpThread::status of every thread.  Only reads procfs, so it may run beside everything else.
Result<void> read_thread_statuses(state::DumpTask& task);
// After the threads were saved: an entry for every main thread that has ended while others go on.
void add_ended_leaders(const std::vector<std::unique_ptr<state::DumpTask>>& tasks, image::Set& set);

}  // namespace ferry::engine
