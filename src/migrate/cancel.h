// Stopping a move that another process has in hand.
#pragma once

#include <string>

#include "base/error.h"
#include "migrate/logbook.h"

namespace ferry::migrate {

// The move that is meant by its id, by the beginning of one, or by the name or id of its container.
// Errors: gone, if there is none that has not ended; invalid, if there are several.
Result<Entry> find_move(const std::string& wanted);

// Ends it and waits until the container is known to run where it came from, as far as that can be seen on this
// host.  The value is a sentence.  Errors: invalid, if the container has been given away.
Result<std::string> cancel(const Entry& entry);

}  // namespace ferry::migrate
