// The network of a container while its tree is frozen here: what arrives waits for whoever goes on with it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "state/net_gate/net_gate.h"

namespace ferry::migrate {

class Door {
 public:
  // Of the network namespace of a process.  A container that shares ours has no door of its own: all calls do
  // nothing then.
  static Result<Door> of(HostPid root);
  [[nodiscard]] bool exists() const { return static_cast<bool>(ns_); }

  // While the tree runs: so that shut() takes no time.
  Result<void> prepare();
  // Shortly before the tree is stopped, which goes on with the connections that it has: new ones wait from here
  // on, so that accept queues run empty.  Takes milliseconds (net_gate.h); withhold() then takes none.
  Result<void> hold_back_new_connections();
  // Right before the tree is stopped, after the former: everything waits.
  Result<void> withhold();
  // What has arrived since the last call, as whole IP packets.
  Result<std::vector<std::string>> arrived();
  // From the moment when another host may go on: not one more frame with our address leaves.
  Result<void> shut();
  // The tree goes on here.
  void reopen();
  // The tree went on elsewhere, and has been told of everything that arrived.
  void leave_shut();

 private:
  UniqueFd ns_;
  std::optional<state::net_gate::Withheld> withheld_;
  state::net_gate::Gate gate_;
  std::size_t taken_ = 0;
};

// For a move that another process began: opens what it left shut.  Nothing if it was open.
Result<void> reopen_door_of(HostPid root);

}  // namespace ferry::migrate
