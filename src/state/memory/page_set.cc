#include "state/memory/page_set.h"

#include <algorithm>
#include <iterator>

namespace ferry::state::memory {

void PageSet::add(std::uint64_t start, std::uint64_t end) {
  if (start >= end) {
    return;
  }
  auto next = ranges_.upper_bound(start);
  if (next != ranges_.begin()) {
    if (const auto before = std::prev(next); before->second >= start) {
      start = before->first;
      end = std::max(end, before->second);
      next = ranges_.erase(before);
    }
  }
  while (next != ranges_.end() && next->first <= end) {
    end = std::max(end, next->second);
    next = ranges_.erase(next);
  }
  ranges_.emplace_hint(next, start, end);
}

void PageSet::remove(std::uint64_t start, std::uint64_t end) {
  if (start >= end) {
    return;
  }
  auto next = ranges_.upper_bound(start);
  if (next != ranges_.begin()) {
    const auto before = std::prev(next);
    const std::uint64_t old_end = before->second;
    if (old_end > start) {
      before->second = start;
      if (before->first == start) {
        ranges_.erase(before);
      }
      if (old_end > end) {
        ranges_.emplace(end, old_end);
        return;
      }
    }
  }
  while (next != ranges_.end() && next->first < end) {
    const std::uint64_t old_end = next->second;
    next = ranges_.erase(next);
    if (old_end > end) {
      ranges_.emplace(end, old_end);
      return;
    }
  }
}

bool PageSet::covers(std::uint64_t start, std::uint64_t end) const {
  auto next = ranges_.upper_bound(start);
  return start >= end || (next != ranges_.begin() && std::prev(next)->second >= end);
}

std::vector<sys::PageRange> PageSet::ranges() const {
  std::vector<sys::PageRange> out;
  out.reserve(ranges_.size());
  for (const auto& [start, end] : ranges_) {
    out.push_back({start, end});
  }
  return out;
}

}  // namespace ferry::state::memory
