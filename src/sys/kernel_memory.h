// Words of the kernel's own memory, at addresses that its type information (sys/btf.h) leads to: for state that the
// kernel tells of nowhere else.
//
// A program of BPF reads them, by the helper that tracing tools use: an address that is not there is an error, and
// nothing is written or locked.  What is read may change meanwhile unless it belongs to something that stands still.
// Source: bpf-helpers(7), bpf_probe_read_kernel; programs of type BPF_PROG_TYPE_SYSCALL since Linux 5.14.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

class KernelMemory {
 public:
  KernelMemory() = default;
  // Loads the program.  Errors: unsupported or denied, where this kernel does not do that or not for us.
  static Result<KernelMemory> open();
  [[nodiscard]] bool is_open() const { return static_cast<bool>(program_); }

  // The task_struct of the calling thread.
  [[nodiscard]] Result<std::uint64_t> current_task() const;
  // Errors: os (there is nothing at this address, or it is one of the program's).
  Result<void> read(std::uint64_t address, std::span<std::byte> out) const;
  template <class T>
  [[nodiscard]] Result<T> read(std::uint64_t address) const {
    static_assert(std::is_trivially_copyable_v<T>);
    T out;
    FERRY_CHECK(read(address, std::as_writable_bytes(std::span(&out, 1))));
    return out;
  }
  template <class T>
  [[nodiscard]] Result<std::vector<T>> read_array(std::uint64_t address, std::size_t count) const {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<T> out(count);
    FERRY_CHECK(read(address, std::as_writable_bytes(std::span(out))));
    return out;
  }

 private:
  UniqueFd program_;
};

}  // namespace ferry::sys
