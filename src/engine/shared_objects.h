// Which kernel objects the processes of a tree share: address spaces, descriptor tables, working
// directories, tables of signal handlers.  Source: kcmp(2), clone(2).
#pragma once

#include <memory>
#include <vector>

#include "base/error.h"
#include "state/dump.h"

namespace ferry::engine {

// Numbers the objects of every task in its ids.  Descriptor tables and working directories may be shared
// with the parent.  Errors: unsupported, for other sharing, by process and what it shares.
Result<void> number_objects(std::vector<std::unique_ptr<state::DumpTask>>& tasks);

}  // namespace ferry::engine
