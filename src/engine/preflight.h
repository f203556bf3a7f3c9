// What can be known to fail before anything is stopped.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "engine/options.h"
#include "sys/mapping_look.h"
#include "sys/task_look.h"
#include "tracee/way_back.h"

namespace ferry::engine {

// Looks at the running tree through procfs.  A tree changes while one looks, so what passes here may still
// be refused once it is stopped; but what is plainly impossible costs the program no pause.
// `look`: opened if there is a process of many threads.
// `mappings`, `ways`: made ready for each process.
// Errors: gone if the root is; unsupported, by process and descriptor.
Result<void> preflight(const DumpOptions& options, sys::TaskLook& look, sys::MappingLook& mappings,
                       tracee::WaysBack& ways);

// How many bytes of private memory each process of the tree holds, parents before children; what is swapped
// out counts.  An estimate: the tree runs.
std::vector<std::uint64_t> private_memory(HostPid root, sys::TaskLook& look);

}  // namespace ferry::engine
