// Another process's memory, in bulk.  Source: process_vm_readv(2), proc(5) /proc/PID/mem.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/ids.h"
#include "sys/pagemap.h"

namespace ferry::sys {

// Reads or writes exactly the given bytes.  Where the mapping's protection forbids it, goes through
// `mem` (an open /proc/PID/mem) if that is >= 0, which ignores protection for a tracer.
// Errors: gone if the process died; os (EFAULT) for addresses that are not mapped.
Result<void> read_memory(HostPid pid, std::uint64_t address, std::span<std::byte> into, int mem = -1);
Result<void> write_memory(HostPid pid, std::uint64_t address, std::span<const std::byte> from, int mem = -1);

// Reads ranges one behind the other, which together are no longer than `into` and no more than 1024.  The value is
// how many bytes came before the first that cannot be read.
std::uint64_t read_ranges(HostPid pid, std::span<const PageRange> ranges, std::span<std::byte> into);
struct Placed {
  std::uint64_t address = 0;
  std::span<const std::byte> bytes;
};
// Writes all parts, however many.  Errors: as write_memory().
Result<void> write_parts(HostPid pid, std::span<const Placed> parts, int mem = -1);

template <class T>
Result<T> read_object(HostPid pid, std::uint64_t address, int mem = -1) {
  T value{};
  FERRY_CHECK(read_memory(pid, address, std::as_writable_bytes(std::span(&value, 1)), mem));
  return value;
}

}  // namespace ferry::sys
