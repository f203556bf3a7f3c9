// Work that the kernel is to remember another user for.
#pragma once

#include <cstdint>
#include <functional>

#include "base/error.h"

namespace ferry::sys {

// Runs `work` on a thread with that real and effective user, in the namespaces of the thread that calls.  The groups
// stay ours, and so does the saved user.
Result<void> as_user(std::uint32_t uid, std::uint32_t euid, const std::function<Result<void>()>& work);

}  // namespace ferry::sys
