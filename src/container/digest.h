// SHA-256 in the notation of OCI: "sha256:" and 64 hexadecimal digits.
#pragma once

#include <string>
#include <string_view>

namespace ferry::container {

std::string sha256_of(std::string_view text);

}  // namespace ferry::container
