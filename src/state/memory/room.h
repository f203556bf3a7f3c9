// Where in an address space there is room for something of ours.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

namespace ferry::state::memory {

constexpr std::uint64_t kUserEnd = 0x7ffffffff000;  // of a 47-bit address space

// The lowest address with `size` free bytes and a page on both sides, so that the kernel makes no mapping there one
// with its neighbour: far from the stacks, which may still have to grow.
// `taken`: anything with start and end, in the order of start.
template <class Ranges>
std::optional<std::uint64_t> lowest_room(const Ranges& taken, std::uint64_t size) {
  constexpr std::uint64_t kLowest = 0x100000000;  // above what 32-bit leftovers use
  constexpr std::uint64_t kPage = 4096;
  std::uint64_t at = kLowest;
  for (const auto& range : taken) {
    if (range.start > at && range.start - at >= size + 2 * kPage) {
      break;
    }
    at = std::max<std::uint64_t>(at, range.end + kPage);
  }
  return at <= kUserEnd && size <= kUserEnd - at ? std::optional(at) : std::nullopt;
}

}  // namespace ferry::state::memory
