// Putting right what a ferry left behind that was killed, or brought no answer: done by the guard of a move, and
// by `ferry resolve` where the guard was killed, too, or the host has been started anew.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "migrate/logbook.h"

namespace ferry::migrate {

// A move that no process has in hand.  A source that has given its tree away asks the destination.
// The value is a sentence about what became of the container.
Result<std::string> settle(const std::string& move, Role role);

// For the guard: until it has succeeded, or nobody can.
void settle_patiently(const std::string& move, Role role);

// Moves on this host that are for settle().
struct Unsettled {
  std::string move;
  Role role = Role::source;
  std::string container_name;
  std::string peer;
};
Result<std::vector<Unsettled>> unsettled();

}  // namespace ferry::migrate
