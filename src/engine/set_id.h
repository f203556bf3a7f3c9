// What a set is called by other sets: random, in the form of a UUID.
#pragma once

#include <string>

#include "base/error.h"

namespace ferry::engine {

Result<std::string> random_set_id();

}  // namespace ferry::engine
