// Content that need not be kept or sent.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>

namespace ferry {

inline bool all_zeros(std::span<const std::byte> content) {
  // Compared with itself one byte further on: all bytes are equal, and the first is zero.
  return content.empty() ||
         (content[0] == std::byte{0} && std::memcmp(content.data(), content.data() + 1, content.size() - 1) == 0);
}

}  // namespace ferry
