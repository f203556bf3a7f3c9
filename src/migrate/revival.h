// The user's last word on a move whose destination is lost: the frozen source runs on, as it was when it was given
// away.
//
// It is against the rule that only the destination's word thaws a source, and so it is for the user alone to say, who
// can know that the other host will not come back.  A destination that answers is believed more than the user.
#pragma once

#include <string>

#include "base/error.h"
#include "migrate/logbook.h"
#include "migrate/record.h"

namespace ferry::migrate {

// What the user wishes is written where whoever has the move in hand looks for it: they alone act.
bool revival_is_wished(const std::string& move);
void forget_revival(const std::string& move);

// Of the move of a source: wishes it, and waits until it is done.  The value is a sentence.
// Errors: invalid, if the destination answers and has the container, or it was never given away.
Result<std::string> revive_source(const Entry& entry);

// By the one that has the move in hand, and knows that it is wished.
Result<std::string> revive(const GivenRecord& record);

}  // namespace ferry::migrate
