// The version of an image set, which its inventory tells.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "image/set.h"

namespace ferry::image {

// The inventory's img_version, if it is one that `accept` wants.  Errors: unsupported or corrupt.
Result<std::uint32_t> check_version(const Set& set, Accept accept);

}  // namespace ferry::image
