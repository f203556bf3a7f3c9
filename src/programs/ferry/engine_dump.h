// The engine, as the container layer wants it.
#pragma once

#include "base/error.h"
#include "container/snapshot.h"

namespace ferry::program {

// container::Dumper.  Writes the engine's log to dump.log beside the images.
Result<void> dump_with_engine(const container::DumpRequest& request);

}  // namespace ferry::program
