// What Docker knows that would make a move or a checkpoint fail or lose something, found before
// anything is touched.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/error.h"
#include "container/docker.h"

namespace ferry::container {

struct Finding {
  bool refuses = false;  // false: worth knowing
  std::string text;      // what, why, what to do
};

struct PreflightOptions {
  bool drop_exec = false;  // exec sessions may end
  bool moving = false;     // to another host, where the log is to be continued
};

// The container has to be running: created, stopped, paused, restarting each gets its own sentence.
Result<void> check_running(const Container& container);

// About a running container that is to be frozen.
Result<std::vector<Finding>> examine_source(Docker& docker, const Container& container,
                                            const PreflightOptions& options);

// About a daemon that is to restore: experimental features, the criu that it would find.
std::vector<Finding> examine_restoring_daemon(const Docker& docker);
Result<void> check_experimental(const Docker& docker);

// A probe of the health check that runs right now would vanish at a checkpoint: waits for its end.
Result<void> wait_for_health_check(Docker& docker, const Container& container, std::chrono::seconds limit);

// True if an exec session is the container's own health check.
bool is_health_probe(const Container& container, const ExecSession& session);

// All refusals joined into one error; the rest is left for the caller to show.
Result<void> refuse(const std::vector<Finding>& findings);

}  // namespace ferry::container
