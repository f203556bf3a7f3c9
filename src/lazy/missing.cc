#include "lazy/missing.h"

#include <algorithm>

namespace ferry::lazy {

void Missing::insert(Part part) {
  if (part.start >= part.end) {
    return;
  }
  bytes_ += part.end - part.start;
  moved_ += part.origin != part.start ? 1 : 0;
  if (part.origin == part.start) {  // neighbours that nobody moved become one
    const auto after = parts_.lower_bound(part.start);
    if (after != parts_.begin()) {
      Part& before = std::prev(after)->second;
      if (before.end == part.start && before.origin == before.start) {
        before.end = part.end;
        return;
      }
    }
  }
  parts_.emplace(part.start, part);
}

std::vector<Missing::Part> Missing::within(std::uint64_t start, std::uint64_t end) const {
  std::vector<Part> out;
  if (start >= end) {
    return out;
  }
  auto at = parts_.upper_bound(start);
  if (at != parts_.begin() && std::prev(at)->second.end > start) {
    --at;
  }
  for (; at != parts_.end() && at->first < end; ++at) {
    Part part = at->second;
    const std::uint64_t from = std::max(part.start, start);
    part.origin += from - part.start;
    part.start = from;
    part.end = std::min(part.end, end);
    out.push_back(part);
  }
  return out;
}

void Missing::remove(std::uint64_t start, std::uint64_t end) {
  if (start >= end) {
    return;
  }
  auto at = parts_.upper_bound(start);
  if (at != parts_.begin() && std::prev(at)->second.end > start) {
    --at;
  }
  while (at != parts_.end() && at->first < end) {
    const Part part = at->second;
    at = parts_.erase(at);
    bytes_ -= part.end - part.start;
    moved_ -= part.origin != part.start ? 1 : 0;
    insert({part.start, std::min(part.end, start), part.origin});
    if (part.end > end) {
      insert({end, part.end, part.origin + (end - part.start)});
    }
  }
}

void Missing::move(std::uint64_t from, std::uint64_t to, std::uint64_t size) {
  auto moved = within(from, from + size);
  remove(from, from + size);
  remove(to, to + size);
  for (Part& part : moved) {
    part.start = part.start - from + to;
    part.end = part.end - from + to;
    insert(part);
  }
}

std::optional<std::uint64_t> Missing::origin_of(std::uint64_t address) const {
  const auto after = parts_.upper_bound(address);
  if (after == parts_.begin()) {
    return std::nullopt;
  }
  const Part& part = std::prev(after)->second;
  return part.end > address ? std::optional(part.origin + (address - part.start)) : std::nullopt;
}

std::vector<Missing::Part> Missing::of_origin(std::uint64_t start, std::uint64_t end) const {
  if (moved_ == 0) {
    return within(start, end);
  }
  std::vector<Part> out;
  for (const auto& [at, whole] : parts_) {
    const std::uint64_t origin_end = whole.origin + (whole.end - whole.start);
    const std::uint64_t from = std::max(start, whole.origin);
    const std::uint64_t till = std::min(end, origin_end);
    if (from < till) {
      out.push_back({whole.start + (from - whole.origin), whole.start + (till - whole.origin), from});
    }
  }
  return out;
}

std::optional<Missing::Part> Missing::next(std::uint64_t address) const {
  const auto parts = parts_.upper_bound(address);
  if (parts != parts_.begin() && std::prev(parts)->second.end > address) {
    Part part = std::prev(parts)->second;
    part.origin += address - part.start;
    part.start = address;
    return part;
  }
  return parts == parts_.end() ? std::nullopt : std::optional(parts->second);
}

}  // namespace ferry::lazy
