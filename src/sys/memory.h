// Another process's memory, in bulk.  Source: process_vm_readv(2), proc(5) /proc/PID/mem.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::sys {

// Reads or writes exactly the given bytes.  Where the mapping's protection forbids it, goes through
// `mem` (an open /proc/PID/mem) if that is >= 0, which ignores protection for a tracer.
// Errors: gone if the process died; os (EFAULT) for addresses that are not mapped.
Result<void> read_memory(HostPid pid, std::uint64_t address, std::span<std::byte> into, int mem = -1);
Result<void> write_memory(HostPid pid, std::uint64_t address, std::span<const std::byte> from, int mem = -1);

template <class T>
Result<T> read_object(HostPid pid, std::uint64_t address, int mem = -1) {
  T value{};
  FERRY_CHECK(read_memory(pid, address, std::as_writable_bytes(std::span(&value, 1)), mem));
  return value;
}

}  // namespace ferry::sys
