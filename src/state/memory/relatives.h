// Which processes may have pages in common, and so how their memory is to be read.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "state/dump.h"
#include "state/memory/read_pages.h"
#include "sys/proc.h"

namespace ferry::state::memory {

// For each of them, in their order: sharing if it has its memory from the same execve(2) as another one, forked from it
// or from the same.  Where a program and its stack lie is drawn anew by every execve(2).  Without that (personality(2),
// ADDR_NO_RANDOMIZE) strangers are taken for relatives, which costs time only.
std::vector<Reading> readings_of(std::span<const sys::Stat* const> processes);
std::vector<Reading> readings_of(std::span<const std::unique_ptr<DumpTask>> tasks);

}  // namespace ferry::state::memory
