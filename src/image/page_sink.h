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
  // Errors: invalid if what was appended is not what was described.
  virtual Result<void> finish() = 0;
};

}  // namespace ferry::image
