// Write tracking by userfaultfd: asynchronous write protection.
//
// A store to a protected page is let through by the kernel itself, which takes the protection off; who
// wrote is found out later by PAGEMAP_SCAN (pagemap.h).  Nobody reads the descriptor, so nothing ever waits
// for its owner.
// Source: Documentation/admin-guide/mm/userfaultfd.rst, "Write Protect Notifications"; since Linux 6.7.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

// userfaultfd(2)'s flag for one whose faults in kernel mode nobody could answer; needs no privilege.
inline constexpr int kUffdUserModeOnly = 1;

// Agrees with the kernel on asynchronous write protection, on memory that has no page yet as well.
// Errors: unsupported (a kernel before 6.7).
Result<void> uffd_negotiate(int uffd);
// Watches every mapping in [start, end) of the address space that made the descriptor, and takes off what
// protection an earlier watch left there (mremap(2) carries it along before Linux 6.13).
// Errors: gone (that address space is), unsupported (a mapping that cannot be watched, or is watched by
// another userfaultfd).
Result<void> uffd_watch(int uffd, std::uint64_t start, std::uint64_t end);

// Whether this kernel has it.
Result<bool> has_write_tracking();

}  // namespace ferry::sys
