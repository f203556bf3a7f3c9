// A random name: 128 bits from the kernel, as 32 hexadecimal digits.
#pragma once

#include <string>

#include "base/error.h"

namespace ferry::container {

Result<std::string> random_id();

}  // namespace ferry::container
