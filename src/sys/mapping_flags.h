// What the kernel's own flags of a mapping mean, learned from examples of the running kernel: smaps names each bit by
// two letters ("VmFlags", proc_pid_smaps(5)), and which bit is which differs from version to version.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace ferry::sys {

class MappingFlags {
 public:
  struct Example {
    std::uint64_t word = 0;  // vm_flags of the kernel
    std::string_view names;  // of the same mapping, "rd wr mr"
  };
  // Bits that come only together in the examples are told apart from no bit, not from each other.
  // Errors: unsupported (the examples contradict that each name is a bit).
  static Result<MappingFlags> learn(const std::vector<Example>& examples);

  // " rd wr mr " as Mapping::vm_flags has it, in an order of its own; empty if the examples do not tell.
  [[nodiscard]] std::optional<std::string> names_of(std::uint64_t word) const;

 private:
  struct Group {
    std::uint64_t bits = 0;
    std::string names;  // each followed by a blank
  };
  std::vector<Group> groups_;
};

}  // namespace ferry::sys
