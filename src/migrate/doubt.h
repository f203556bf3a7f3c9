// A move whose destination was given the tree and has not said that it took it.
#pragma once

#include <chrono>
#include <string>

#include "base/error.h"
#include "migrate/record.h"

namespace ferry::migrate {

// Asks the destination by a connection of its own.  An answer is final.
Result<Decision> ask(const std::string& rsh, const std::string& destination, const std::string& move);

// Acts on the answer in the place of the ferry that is gone: the frozen source is ended and removed, or
// thawed and given its restart policy back.  The value is a sentence about it.
Result<std::string> act(const GivenRecord& record, Decision decision);

// For the guard: asks until there is an answer, then acts.
void resolve_patiently(const std::string& move);

}  // namespace ferry::migrate
