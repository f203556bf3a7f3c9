// Checkpoint: the network namespaces that the sockets of a tree are in.
//
// A socket stays in the namespace that it was made in, wherever its process goes (network_namespaces(7)).  So it
// may be in one that another task lives in, in this host's, or in one that nothing but sockets holds; such a one is
// given a number here and saved like the others.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "state/dump.h"

namespace ferry::state {

class Networks {
 public:
  struct Place {
    std::uint32_t id = 0;
    UniqueFd ns;           // the namespace itself
    bool of_root = false;  // the root task's
    bool lives = false;    // a task lives in it, or it is this host's
  };
  // Of a socket.  The answer stays where it is.
  Result<const Place*> of_socket(const std::string& subject, int socket, DumpContext& context);
  // Those that only sockets are in, as far as sockets were asked.
  [[nodiscard]] std::vector<const Place*> without_tasks() const;

 private:
  Result<void> learn(DumpContext& context);

  std::map<std::uint64_t, std::unique_ptr<Place>> by_inode_;
  std::uint32_t last_id_ = 0;
};

}  // namespace ferry::state
