// Huge pages (hugetlbfs): a host has as many as its administrator has set aside.
#pragma once

#include <cstdint>
#include <map>
#include <string_view>

#include "base/error.h"
#include "state/restore.h"

namespace ferry::state::memory {

// How many pages of each size (in bytes) the mappings and memory files of a set take, at the most.
std::map<std::uint64_t, std::uint64_t> huge_pages_of(const RestoreContext& context);

// Before anything is mapped, where a single mmap(2) would only say that memory is short.
// Errors: unsupported, with the numbers.
Result<void> check_huge_pages(const RestoreContext& context);

}  // namespace ferry::state::memory
