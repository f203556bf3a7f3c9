// What this host has.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace ferry::sys {

// Bytes that new work can use without swapping: MemAvailable of proc_meminfo(5).
Result<std::uint64_t> available_memory();

}  // namespace ferry::sys
