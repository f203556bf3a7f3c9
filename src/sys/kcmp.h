// Whether two tasks share a kernel object: kcmp(2).
#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::sys {

// The order of two objects: 0 the same; otherwise stable while both live, so that it can sort.
enum class Order : std::uint8_t { same, less, greater, unordered };

// Descriptor `fd_a` of `a` and `fd_b` of `b`: one open file description?
Result<Order> compare_files(HostPid a, int fd_a, HostPid b, int fd_b);
// Is descriptor `fd` of `task` the file that epoll descriptor `epoll` of `owner` watches as number
// `watched`?  `position`: which of several watches with that number (files that were closed and the
// number used again), from 0.  Errors: gone if there is no such watch.
Result<bool> is_watched_file(HostPid task, int fd, HostPid owner, int epoll, int watched, std::uint32_t position);

}  // namespace ferry::sys
