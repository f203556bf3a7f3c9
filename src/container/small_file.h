// Small text files, read and written whole.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace ferry::container {

// At most 64 MiB: what is read here are descriptions, never content.
Result<std::string> read_small_file(const std::string& path);
// A new file of mode 0600; an existing one is an error.
Result<void> write_new_file(const std::string& path, std::string_view text);

}  // namespace ferry::container
