// Another program run to its end, with what it printed.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/error.h"

namespace ferry::container {

struct ProgramOutput {
  int status = 0;    // exit code, or 128 + signal
  std::string text;  // standard output and error, at most 64 KiB
};

// argv[0] is a path.  A program that runs longer than `limit` is killed, which is an error.
Result<ProgramOutput> run_program(const std::vector<std::string>& argv, std::chrono::milliseconds limit);

}  // namespace ferry::container
