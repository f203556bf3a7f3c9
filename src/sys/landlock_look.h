// Which threads have restricted themselves with landlock(7).  No file and no system call tells: a thread's domain is
// a word among the kernel's credentials, and where it stands there differs from kernel to kernel.
//
// An iterator of BPF emits the part of the credentials that belongs to security modules.  Which word of it is the
// domain is learned from processes of our own: it is zero without and set with restrictions.
// Source: Documentation/userspace-api/landlock.rst, Documentation/bpf/bpf_iterators.rst.
#pragma once

#include <string>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "sys/btf.h"

namespace ferry::sys {

// Whether this kernel has Landlock, and it was not switched off at boot.
bool kernel_has_landlock();

class LandlockLook {
 public:
  // Errors: unsupported or denied, where this kernel does not show it or not to us.
  static Result<LandlockLook> open(const Btf& btf);

  // Whether any thread that we can see is restricted: one look for all, which nearly always answers for each.
  [[nodiscard]] Result<bool> any() const;
  // Whether a thread of this process is.
  [[nodiscard]] Result<bool> is_restricted(HostPid pid) const;

 private:
  // Whether one of the threads of which these are the words is restricted.
  [[nodiscard]] bool is_in(const std::string& threads) const;

  UniqueFd program_;
  std::size_t domain_ = 0;  // which word
};

}  // namespace ferry::sys
