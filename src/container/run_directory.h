// Where ferry's processes of one host meet: sockets that are there as long as what they serve.
#pragma once

#include "base/error.h"

namespace ferry::container {

inline constexpr const char* kRunDirectory = "/run/ferry";

// Root's alone.  It may be there already.
Result<void> make_run_directory();

}  // namespace ferry::container
