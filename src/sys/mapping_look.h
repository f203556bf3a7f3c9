// The flags of a process's mappings, and which have a memory policy, without smaps, which walks over every page to
// count them: 12 ms for a gigabyte.
//
// An iterator of BPF emits the kernel's word of flags of each mapping; what its bits mean is learned beforehand from a
// process of our own (mapping_flags.h).  A word with a bit that was not to be seen there is not guessed at: smaps is.
// Source: Documentation/bpf/bpf_iterators.rst; iterators over the mappings of one process since Linux 6.1.
#pragma once

#include <map>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "sys/bpf_iterator.h"
#include "sys/mapping_flags.h"
#include "sys/proc.h"

namespace ferry::sys {

class MappingLook {
 public:
  MappingLook() = default;
  // Loads the program and learns.  Errors: unsupported or denied, where this kernel does not do that or not for us.
  static Result<MappingLook> open();

  // While the process still runs: makes ready for a look at it, if it is so large that this costs less than smaps.
  void expect(HostPid pid);

  // All mappings of a process that is stopped, with their flags.  `proc`: its directory in procfs.
  Result<std::vector<Mapping>> mappings_of(HostPid pid, int proc);

 private:
  Result<MappingFlags> learn() const;
  // Adds the flags to what `maps` says; unsupported where the kernel's words are not to be understood.
  Result<void> add_flags(Iteration& iteration, std::vector<Mapping>& mappings) const;

  UniqueFd program_;
  MappingFlags flags_;
  bool tried_ = false;
  std::map<HostPid, Iteration> ready_;
};

}  // namespace ferry::sys
