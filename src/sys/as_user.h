// Work that the kernel is to remember another user for.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "base/error.h"

namespace ferry::sys {

struct User {
  std::uint32_t uid = 0;
  std::uint32_t euid = 0;
  std::optional<std::uint32_t> gid{};  // real and effective; ours if none
};
// Runs `work` on a thread that is this user, in the namespaces of the thread that calls.  The supplementary groups stay
// ours, and so do the saved ids.
Result<void> as_user(const User& user, const std::function<Result<void>()>& work);

}  // namespace ferry::sys
