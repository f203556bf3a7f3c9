// A set of pages of one address space.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "sys/pagemap.h"

namespace ferry::state::memory {

class PageSet {
 public:
  // Byte addresses, page-aligned.
  void add(std::uint64_t start, std::uint64_t end);
  void remove(std::uint64_t start, std::uint64_t end);
  [[nodiscard]] bool covers(std::uint64_t start, std::uint64_t end) const;
  // Sorted, not overlapping, neighbours merged.
  [[nodiscard]] std::vector<sys::PageRange> ranges() const;
  [[nodiscard]] bool empty() const { return ranges_.empty(); }

 private:
  std::map<std::uint64_t, std::uint64_t> ranges_;  // start, end
};

}  // namespace ferry::state::memory
