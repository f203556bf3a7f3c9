// What `criu lazy-pages` does: waits for a restore, and fills its tree from an image set, or from a stopped tree.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/error.h"
#include "lazy/endpoint.h"
#include "lazy/fault_server.h"

namespace ferry::lazy {

struct DaemonOptions {
  int images_dir = -1;  // open; not owned
  int work_dir = -1;    // where a relative socket is; not owned
  std::string socket = kDefaultSocket;
  std::optional<PageServerPlace> page_server;  // where pages are that the images do not have
  // When a restore can connect: an error ends the daemon.
  std::function<Result<void>()> ready;
  static constexpr const char* kDefaultSocket = "lazy-pages.socket";
};

// Returns when nothing is missing any more.  Everything that can be known to be wrong is before a restore is let in.
Result<FaultReport> serve_restore(const DaemonOptions& options);

}  // namespace ferry::lazy
