// The memory that a ring shares with its program, mapped here.
#pragma once

#include <linux/io_uring.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "base/error.h"

namespace ferry::state::io_uring {

class Areas {
 public:
  static Result<Areas> map(int ring, std::uint64_t rings_size, std::uint64_t sqes_size, int protection) {
    Areas out;
    FERRY_TRY(out.rings_, map_one(ring, IORING_OFF_SQ_RING, rings_size, protection));
    FERRY_TRY(out.sqes_, map_one(ring, IORING_OFF_SQES, sqes_size, protection));
    return out;
  }
  Areas(Areas&& other) noexcept : rings_(std::exchange(other.rings_, {})), sqes_(std::exchange(other.sqes_, {})) {}
  Areas& operator=(Areas&&) = delete;
  ~Areas() {
    for (const auto& area : {rings_, sqes_}) {
      if (!area.empty()) {
        ::munmap(area.data(), area.size());
      }
    }
  }

  [[nodiscard]] std::span<std::byte> rings() const { return rings_; }
  [[nodiscard]] std::span<std::byte> sqes() const { return sqes_; }
  // A word of the rings that the kernel reads or writes as well.
  [[nodiscard]] volatile std::uint32_t& word(std::uint32_t offset) const {
    return *reinterpret_cast<volatile std::uint32_t*>(rings_.data() + offset);
  }

 private:
  Areas() = default;
  static Result<std::span<std::byte>> map_one(int ring, std::uint64_t offset, std::uint64_t size, int protection) {
    void* at = ::mmap(nullptr, size, protection, MAP_SHARED, ring, static_cast<off_t>(offset));
    if (at == MAP_FAILED) {
      return sys_fail("mmap(ring)");
    }
    return std::span(static_cast<std::byte*>(at), size);
  }

  std::span<std::byte> rings_, sqes_;
};

}  // namespace ferry::state::io_uring
