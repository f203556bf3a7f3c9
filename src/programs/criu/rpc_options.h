// The options of an RPC request as settings.
#pragma once

#include "base/error.h"
#include "base/ids.h"
#include "programs/criu/settings.h"

namespace ferry::rpc {
class criu_opts;
}

namespace ferry::criu {

// Where the request wants its files: directories, which are descriptor numbers of `peer` or paths,
// the log file and level.  Apart from the rest, so that what is wrong with the rest can be logged.
// Errors: invalid, for no images directory or a log file outside the work directory.
Result<void> apply_rpc_places(Settings& settings, const rpc::criu_opts& opts, HostPid peer);

// All other options.  Errors: unsupported for what ferry does not do, by its RPC name; invalid.
Result<void> apply_rpc_options(Settings& settings, const rpc::criu_opts& opts);

}  // namespace ferry::criu
