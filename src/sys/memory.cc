#include "sys/memory.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

namespace ferry::sys {
namespace {

constexpr std::size_t kStep = 16U << 20;  // from 1 MiB on a step costs nothing; bounds one call's time

}  // namespace

Result<void> read_memory(HostPid pid, std::uint64_t address, std::span<std::byte> into, int mem) {
  while (!into.empty()) {
    const iovec local{into.data(), std::min(into.size(), kStep)};
    const iovec remote{reinterpret_cast<void*>(address), local.iov_len};
    ssize_t n = ::process_vm_readv(pid.value, &local, 1, &remote, 1, 0);
    if (n < 0 && errno == EFAULT && mem >= 0) {
      n = ::pread(mem, local.iov_base, local.iov_len, static_cast<off_t>(address));
    }
    if (n <= 0) {
      if (n == 0) {
        errno = EFAULT;
      }
      return sys_fail(fmt::format("process_vm_readv(pid {}, {:#x}, {} bytes)", pid, address, local.iov_len));
    }
    address += static_cast<std::uint64_t>(n);
    into = into.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> write_memory(HostPid pid, std::uint64_t address, std::span<const std::byte> from, int mem) {
  while (!from.empty()) {
    const iovec local{const_cast<std::byte*>(from.data()), std::min(from.size(), kStep)};
    const iovec remote{reinterpret_cast<void*>(address), local.iov_len};
    ssize_t n = ::process_vm_writev(pid.value, &local, 1, &remote, 1, 0);
    if (n < 0 && errno == EFAULT && mem >= 0) {
      n = ::pwrite(mem, local.iov_base, local.iov_len, static_cast<off_t>(address));
    }
    if (n <= 0) {
      if (n == 0) {
        errno = EFAULT;
      }
      return sys_fail(fmt::format("process_vm_writev(pid {}, {:#x}, {} bytes)", pid, address, local.iov_len));
    }
    address += static_cast<std::uint64_t>(n);
    from = from.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

std::uint64_t read_ranges(HostPid pid, std::span<const PageRange> ranges, std::span<std::byte> into) {
  std::array<iovec, IOV_MAX> remote;
  const std::size_t count = std::min(ranges.size(), remote.size());
  for (std::size_t i = 0; i < count; ++i) {
    remote[i] = {reinterpret_cast<void*>(ranges[i].start), ranges[i].end - ranges[i].start};
  }
  const iovec local{into.data(), into.size()};
  const ssize_t n = ::process_vm_readv(pid.value, &local, 1, remote.data(), count, 0);
  return n < 0 ? 0 : static_cast<std::uint64_t>(n);
}

Result<void> write_parts(HostPid pid, std::span<const Placed> parts, int mem) {
  std::array<iovec, IOV_MAX> local;
  std::array<iovec, IOV_MAX> remote;
  while (!parts.empty()) {
    const std::size_t count = std::min(parts.size(), local.size());
    for (std::size_t i = 0; i < count; ++i) {
      local[i] = {const_cast<std::byte*>(parts[i].bytes.data()), parts[i].bytes.size()};
      remote[i] = {reinterpret_cast<void*>(parts[i].address), parts[i].bytes.size()};
    }
    const ssize_t n = ::process_vm_writev(pid.value, local.data(), count, remote.data(), count, 0);
    auto done = static_cast<std::uint64_t>(std::max<ssize_t>(n, 0));
    std::size_t whole = 0;
    while (whole < count && done >= parts[whole].bytes.size()) {
      done -= parts[whole++].bytes.size();
    }
    parts = parts.subspan(whole);
    if (whole < count) {
      // One that was cut short, or cannot be written this way.
      FERRY_CHECK(write_memory(pid, parts.front().address, parts.front().bytes, mem));
      parts = parts.subspan(1);
    }
  }
  return {};
}

}  // namespace ferry::sys
