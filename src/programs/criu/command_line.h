// criu's command line: words and options in any order, long options shortened as long as they stay
// unambiguous (getopt_long(3)).
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "programs/criu/settings.h"

namespace ferry::criu {

enum class Command {
  help,
  version,
  dump,
  pre_dump,
  dedup,
  restore,
  check,
  cpuinfo_dump,
  cpuinfo_check,
  swrk,
  service,
  page_server,
  lazy_pages,
  deprecated
};

struct Invocation {
  Command command = Command::help;
  Settings settings;
  int swrk_fd = -1;
  std::string deprecated;  // the command that CRIU itself has given up
};

// Reads the configuration files too, and applies the command line over them.
// Not to be called from two threads: getopt_long(3) keeps its place in globals.
// Errors: invalid for bad usage, unsupported for a command or option that ferry does not do.
Result<Invocation> parse_command_line(std::vector<std::string> arguments);

std::string help_text();
std::string version_text();

}  // namespace ferry::criu
