// What takes the pages of one pagemap, in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"

namespace ferry::image {

class PageSink {
 public:
  virtual ~PageSink() = default;
  // The next range; `flags` as in page_store.h.
  virtual void describe(std::uint64_t vaddr, std::uint64_t page_count, std::uint32_t flags) = 0;
  // Content of the ranges described as present, in the same order; in pieces of whole pages, possibly
  // behind several calls of describe.
  virtual Result<void> append(std::span<const std::byte> pages) = 0;
  // Memory that becomes the content of the next `bytes` bytes, to be filled before finish(); saves a copy.
  // Empty if this sink has none to give: then append.
  virtual std::span<std::byte> claim(std::uint64_t bytes) {
    (void)bytes;
    return {};
  }
  // Errors: invalid if what was appended is not what was described.
  virtual Result<void> finish() = 0;
};

}  // namespace ferry::image
