// criu service: RPC requests on a named socket, each connection with a worker process of its own.
#pragma once

#include "programs/criu/operation.h"
#include "programs/criu/settings.h"

namespace ferry::criu {

// Serves until it is killed.  Shape: settings.address is the socket's path (by default criu_service.socket
// in the work directory); settings.status_fd gets one zero byte when it listens; with settings.daemon the
// caller's process returns then, and a child goes on.
// Errors: os (a path that cannot be bound); a connection that fails harms nobody but itself.
Result<void> run_service(const Engine& engine, const Settings& settings, const Workplace& place);

}  // namespace ferry::criu
