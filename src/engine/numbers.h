// Our own numbers of tasks that live in another pid namespace, by theirs.
#pragma once

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"

namespace ferry::engine {

class Numbers {
 public:
  // Of the pid namespace that `member` lives in.
  static Result<Numbers> of(HostPid member);
  // `parent`: of the process, or the process itself for a thread of it; looked through by older kernels.
  Result<HostPid> find(NsPid wanted, HostPid parent, bool thread = false) const;

 private:
  UniqueFd ns_;  // not open: the numbers are the same
};

}  // namespace ferry::engine
