// Dump and restore as the program does them, for the command line and for RPC alike: the engine's
// work with everyone told, statistics written, and the log closed by a line that says how it went.
#pragma once

#include <sys/types.h>

#include <functional>

#include "base/error.h"
#include "engine/options.h"
#include "programs/criu/listeners.h"
#include "programs/criu/settings.h"
#include "programs/criu/workplace.h"

namespace ferry::criu {

// What does the work; tests put other things in its place.
struct Engine {
  std::function<Result<engine::DumpReport>(const engine::DumpOptions&, engine::Listener&)> checkpoint;
  std::function<Result<engine::RestoreReport>(const engine::RestoreOptions&, engine::Listener&)> restore;
  std::function<Result<engine::DumpReport>(const engine::DumpOptions&)> pre_dump = {};
};

struct DumpOutcome {
  Result<void> result;
  int script_status = 0;  // what a failing action script returned
  std::string stats;      // for --display-stats
};
struct RestoreOutcome {
  Result<void> result;
  pid_t root = -1;  // also of a restore that failed after the root task was created
  std::string stats;
};

// `caller` may be null.  Errors are logged already.
DumpOutcome run_dump(const Engine& engine, const Settings& settings, const Workplace& place, engine::Listener* caller);
// Nobody is told of the stages of a pre-dump, which has none.
DumpOutcome run_pre_dump(const Engine& engine, const Settings& settings, const Workplace& place);
RestoreOutcome run_restore(const Engine& engine, const Settings& settings, const Workplace& place,
                           engine::Listener* caller);

// Executes a command in our place (--exec-cmd).  Returns the exit status to end with if it cannot.
int become(const std::vector<std::string>& command);

}  // namespace ferry::criu
