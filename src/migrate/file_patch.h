// A large file of which little has changed: sums of its blocks tell which ones have to cross.
//
// A block has 64 KiB, the last one what is left.  Its sum is XXH3 of 128 bits: against chance, not against the
// container, which could only deceive itself about its own file.
// A piece of a patch is a head (offset u64, length u32, kind u32, little-endian) and, if it is not all zeros, content.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"

namespace ferry::migrate {

constexpr std::size_t kPatchBlock = 64 << 10;
using BlockSum = std::array<std::byte, 16>;

// Of the whole file, holes without reading them.
Result<std::vector<BlockSum>> block_sums(int fd, std::string_view subject);
std::string encode_sums(const std::vector<BlockSum>& sums);
Result<std::vector<BlockSum>> decode_sums(std::string_view bytes);

using PatchSink = std::function<Result<void>(std::span<const std::byte>)>;
// Hands the pieces that turn a file with the sums `there` into this one to `sink`, and makes `there` this one's.
// The value is the size that the pieces lead to.
Result<std::uint64_t> make_patch(int fd, std::vector<BlockSum>& there, const PatchSink& sink, std::string_view subject);

// Takes pieces in any portions.
class Patcher {
 public:
  // Writes to `fd`, at most up to `size`, which the file gets by finish().
  Patcher(int fd, std::uint64_t size) : fd_(fd), size_(size) {}
  Result<void> take(std::span<const std::byte> bytes);
  Result<void> finish();

 private:
  Result<void> zeros(std::uint64_t offset, std::uint32_t length);
  int fd_;
  std::uint64_t size_;
  std::vector<std::byte> waiting_;
};

}  // namespace ferry::migrate
