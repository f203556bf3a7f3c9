// The output of a twin, held back until what the source printed last is in its log.
#pragma once

#include "base/error.h"
#include "base/ids.h"

namespace ferry::migrate {

// containerd's shim of the twin, stopped: it is the one that reads what the twin prints.
class HeldOutput {
 public:
  HeldOutput() = default;
  HeldOutput(const HeldOutput&) = delete;
  HeldOutput& operator=(const HeldOutput&) = delete;
  ~HeldOutput() { release(); }
  // `root`: the first process of the twin, whose pipes get room for what is printed meanwhile.
  Result<void> hold(HostPid shim, HostPid root);
  void release();

 private:
  HostPid shim_;
};

}  // namespace ferry::migrate
