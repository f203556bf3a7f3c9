// The commands page-server and lazy-pages.
#pragma once

#include "base/error.h"
#include "programs/criu/settings.h"
#include "programs/criu/workplace.h"

namespace ferry::criu {

// Takes the pages of one dump into the images directory.
Result<void> run_page_server(const Settings& settings, const Workplace& place);
// Fills one restored tree.
Result<void> run_lazy_pages(const Settings& settings, const Workplace& place);

// RPC: the server runs in a child of ours, or on its own (`detached`).
struct ServerStarted {
  pid_t pid = 0;
  std::uint16_t port = 0;
};
Result<ServerStarted> start_page_server(const Settings& settings, const Workplace& place, bool detached);

}  // namespace ferry::criu
