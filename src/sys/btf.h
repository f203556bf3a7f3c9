// Where the fields of the running kernel's structures are: its own type information.
// Source: Documentation/bpf/btf.rst; /sys/kernel/btf/vmlinux since Linux 5.4 (CONFIG_DEBUG_INFO_BTF).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::sys {

class Btf {
 public:
  struct Field {
    std::uint32_t offset = 0;  // in bytes
    std::uint32_t size = 0;    // of the whole field; 0: a flexible array
  };

  // Of the running kernel.  Errors: os (ENOENT) where it carries none.
  static Result<Btf> of_kernel();
  // Errors: corrupt.
  static Result<Btf> parse(std::string bytes);

  // Type numbers.  Errors: unsupported (this kernel has no such thing).
  [[nodiscard]] Result<std::uint32_t> structure(std::string_view name) const;
  [[nodiscard]] Result<std::uint32_t> function(std::string_view name) const;
  // `path`: member names with dots between them, "pending.signal"; structures without a name are looked through.
  // Errors: unsupported (there is no such field).
  [[nodiscard]] Result<Field> field(std::uint32_t structure, std::string_view path) const;
  [[nodiscard]] std::uint32_t size_of(std::uint32_t type) const { return size_of(type, 0); }

 private:
  struct Place {
    std::uint32_t offset = 0;
    std::uint32_t type = 0;
  };
  struct Head {
    std::uint32_t name, info, size_or_type;
  };
  [[nodiscard]] Head head(std::uint32_t type) const;
  [[nodiscard]] std::string_view string(std::uint32_t offset) const;
  [[nodiscard]] std::uint32_t find(std::uint32_t kind, std::string_view name) const;  // 0: none
  [[nodiscard]] std::uint32_t plain(std::uint32_t type) const;  // behind typedef, const and the like
  [[nodiscard]] std::uint32_t size_of(std::uint32_t type, int depth) const;
  [[nodiscard]] bool member(std::uint32_t structure, std::string_view name, int depth, Place& out) const;

  std::string bytes_;
  std::size_t types_ = 0, strings_ = 0, strings_size_ = 0;
  std::vector<std::uint32_t> at_;  // by type number: offset of its head in bytes_
};

}  // namespace ferry::sys
