#include "sys/memory.h"

#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

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

}  // namespace ferry::sys
