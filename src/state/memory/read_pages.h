// Memory of a stopped process, straight to where it is to be.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/error.h"
#include "state/dump.h"
#include "sys/pagemap.h"

namespace ferry::state::memory {

// Copies the ranges one behind the other; `room` has exactly their size.  Large ones on two threads.
Result<void> read_pages(DumpTask& task, std::vector<sys::PageRange> ranges, std::span<std::byte> room);

}  // namespace ferry::state::memory
