// A visit of the calling thread to another network namespace.
#pragma once

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

class NetNamespaceVisit {
 public:
  // `ns`: an open /proc/PID/ns/net, or the like; -1: stays where it is.
  static Result<NetNamespaceVisit> enter(int ns);
  NetNamespaceVisit(NetNamespaceVisit&& other) noexcept = default;
  NetNamespaceVisit& operator=(NetNamespaceVisit&&) = delete;
  ~NetNamespaceVisit();  // returns

 private:
  explicit NetNamespaceVisit(UniqueFd home) : home_(std::move(home)) {}
  UniqueFd home_;
};

}  // namespace ferry::sys
