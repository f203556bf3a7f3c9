// A move whose destination was given the tree and has not said that it took it.
#pragma once

#include <chrono>
#include <string>

#include "base/error.h"
#include "container/docker.h"
#include "migrate/record.h"

namespace ferry::migrate {

// Asks the destination by a connection of its own.  An answer is final.
Result<Decision> ask(const std::string& rsh, const std::string& destination, const std::string& move);

struct Fate {
  Decision decision = Decision::refused;
  bool lost = false;  // it was taken, and ended there before it had all its memory
};
Result<Fate> ask_fate(const std::string& rsh, const std::string& destination, const std::string& move);

// Acts on the answer in the place of the ferry that is gone: the frozen source is ended and removed, or
// thawed and given its restart policy back.  The value is a sentence about it.
Result<std::string> act(const GivenRecord& record, Decision decision);

// Of a destination that took the tree before it had its memory: gives it what it asks for, until it has everything.
Result<void> serve_rest(const GivenRecord& record);

// The two halves of it.  The processes are killed where they stand, and the container is removed unless the user
// keeps it; it may be gone already.
Result<void> end_source(container::Docker& docker, const GivenRecord& record);
// Connections, packets and processes of the source go on, as far as anything holds them.  Needs no daemon.
Result<void> let_run_on(const std::string& freeze_cgroup);

}  // namespace ferry::migrate
