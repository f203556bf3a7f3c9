// Limits of ferry's own process.
#pragma once

#include "base/error.h"

namespace ferry::engine {

// The soft limit of descriptors to the hard one: we hold one of every description of the tree.
// A skeleton inherits it, until its own limits are restored.
Result<void> raise_descriptor_limit();

}  // namespace ferry::engine
