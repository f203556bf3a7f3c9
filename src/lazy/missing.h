// Which pages of one address space have not come yet.
//
// A page is known by where it is missing now, and by its origin: the process and address under which its content is
// stored.  The two addresses differ once the program has moved the memory (mremap(2)).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

namespace ferry::lazy {

class Missing {
 public:
  struct Part {
    std::uint64_t start = 0, end = 0;  // where it is missing, in bytes
    std::uint64_t origin = 0;          // of its first page
    bool operator==(const Part&) const = default;
  };

  void add(std::uint64_t start, std::uint64_t end) { insert({start, end, start}); }
  // Discarded, unmapped, or there by now.
  void remove(std::uint64_t start, std::uint64_t end);
  // What was in [from, from + size) is at `to`; nothing else is missing there any more.
  void move(std::uint64_t from, std::uint64_t to, std::uint64_t size);

  [[nodiscard]] std::optional<std::uint64_t> origin_of(std::uint64_t address) const;
  // Where pages with an origin in the range are missing.
  [[nodiscard]] std::vector<Part> of_origin(std::uint64_t start, std::uint64_t end) const;
  // The first part at or above an address, cut there.
  [[nodiscard]] std::optional<Part> next(std::uint64_t address) const;
  [[nodiscard]] bool empty() const { return parts_.empty(); }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  void insert(Part part);
  [[nodiscard]] std::vector<Part> within(std::uint64_t start, std::uint64_t end) const;

  std::map<std::uint64_t, Part> parts_;  // by start; not overlapping
  std::uint64_t bytes_ = 0;
  std::size_t moved_ = 0;  // parts whose origin is elsewhere
};

}  // namespace ferry::lazy
