// Memory that a device may be writing into.
//
// The kernel pins the buffers of direct I/O and lets the device write past the page tables, so a page that
// is marked meanwhile changes without losing its mark (Documentation/core-api/pin_user_pages.rst).
#pragma once

#include <optional>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "sys/pagemap.h"
#include "sys/proc.h"

namespace ferry::state::memory {

// The buffers of reads from O_DIRECT files that threads of the process are in at this moment, and all its
// private memory if that cannot be told: a thread of a process with such files is on the processor, it has an
// io_uring beside them, or there is an AIO context (io_setup(2)).  With them the buffers that are registered with an
// io_uring.  Sorted, not overlapping.  `proc`: /proc/PID.
Result<std::vector<sys::PageRange>> buffers_of_devices(HostPid pid, int proc,
                                                       const std::vector<sys::Mapping>& mappings);

// The buffers that are registered with an io_uring, from its fdinfo.  nullopt: it does not tell where the kernel
// writes.
std::optional<std::vector<sys::PageRange>> buffers_of_ring(const sys::FdInfo& info);

// The arguments of a system call that reads into memory, as /proc/PID/task/TID/syscall tells it.
struct ReadCall {
  int fd = -1;
  std::uint64_t address = 0, length = 0;  // of the buffer, or of the array of iovec
  bool vectors = false;
};
enum class CallState : std::uint8_t { running, reads, other };
CallState parse_call(std::string_view text, ReadCall& out);

}  // namespace ferry::state::memory
