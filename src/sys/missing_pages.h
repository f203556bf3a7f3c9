// Memory that is not there yet: userfaultfd in missing mode.
//
// Who touches a page of a registered range that has none sleeps until somebody with the descriptor puts one there.
// Source: Documentation/admin-guide/mm/userfaultfd.rst, ioctl_userfaultfd(2), userfaultfd(2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

// Agrees with the kernel on being told of forks, moves, unmappings and discarded pages.
// Errors: unsupported (a kernel before 4.11, or one without a feature).
Result<void> missing_negotiate(int uffd);
// Errors: unsupported (a mapping of a kind that cannot be left missing), gone (that address space is).
Result<void> missing_register(int uffd, std::uint64_t start, std::uint64_t end);

struct MissingEvent {
  enum class What : std::uint8_t { fault, fork, remap, remove, unmap } what{};
  std::uint64_t start = 0, end = 0;  // fault: start is the address, rounded down to its page; remap: where it was
  std::uint64_t to = 0;              // remap: where it is now
  UniqueFd child;                    // fork: the descriptor for the child's memory
};
// nullopt: there is nothing to read now.  Whoever caused an event other than a fault goes on when it is read.
Result<std::optional<MissingEvent>> missing_read(int uffd);

// How far a range was filled, from its start, and why no further.
enum class Fill : std::uint8_t {
  done,
  busy,        // the address space is being changed: an event is or will be there to be read first
  there,       // the next page is there already
  unmapped,    // the next page's mapping is gone, or is none of those that were registered
  unreadable,  // the source of the next page cannot be read
  gone,        // the process has ended, or has another address space by execve(2)
};
struct Filled {
  std::uint64_t bytes = 0;
  Fill end = Fill::done;
};
// Puts copies of the pages at `from` there and wakes who waits.
Result<Filled> missing_copy(int uffd, std::uint64_t to, const std::byte* from, std::uint64_t bytes);
Result<Filled> missing_zero(int uffd, std::uint64_t to, std::uint64_t bytes);
Result<void> missing_wake(int uffd, std::uint64_t start, std::uint64_t bytes);

// Whether this kernel has all of it.
Result<bool> has_missing_pages();
// A descriptor of /dev/userfaultfd, from which a process without privileges of its own can make one that serves
// faults in kernel mode as well; unset where the device is not there, or not for us.
Result<UniqueFd> open_userfaultfd_device();
// ioctl(2) request on it, with userfaultfd(2)'s flags as its argument.
inline constexpr unsigned long kNewUserfaultfd = 0xaa00;

}  // namespace ferry::sys
