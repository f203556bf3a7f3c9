// The RPC worker: requests on one socket, one after the other (docs/criu.md).
#pragma once

#include "programs/criu/operation.h"
#include "programs/criu/settings.h"

namespace ferry::criu {

struct WorkerEnd {
  int status = 0;                         // criu's exit status: 0, 1 for a failed request, 255 for a broken protocol
  std::vector<std::string> exec_command;  // to be run in the worker's place after a restore
};

// Serves until the protocol says to stop: after one request, or with keep_open at the peer's end.
// `base` is what configuration files and command line said; every request starts from it.
WorkerEnd serve(int socket, const Settings& base, const Engine& engine);

}  // namespace ferry::criu
