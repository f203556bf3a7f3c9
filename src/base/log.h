// One line per event, to the sink that the program chose at its start.
//
// Levels are CRIU's (criu(8) -v): 1 errors, 2 warnings, 3 information, 4 debug.  The word "Error"
// stands before every error line because runc and Podman look for it in the log file.
#pragma once

#include <fmt/core.h>

#include <functional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace ferry::log {

enum class Level : int { error = 1, warning = 2, info = 3, debug = 4 };

struct Config {
  Level level = Level::warning;
  int fd = 2;               // where lines go; stays owned by the caller
  bool timestamps = false;  // "(00.001234) " before each line, seconds since configure()
};
// Replaces the sink of this process.  Not to be called while another thread logs.
void configure(const Config& config);
[[nodiscard]] bool enabled(Level level);
void write(Level level, std::string_view line);

// The first error line written so far, for RPC's cr_errmsg; empty if there was none.
[[nodiscard]] std::string first_error();

void error(const Error& error);
template <class... Args>
void warning(fmt::format_string<Args...> text, Args&&... args) {
  if (enabled(Level::warning)) {
    write(Level::warning, fmt::format(text, std::forward<Args>(args)...));
  }
}
template <class... Args>
void info(fmt::format_string<Args...> text, Args&&... args) {
  if (enabled(Level::info)) {
    write(Level::info, fmt::format(text, std::forward<Args>(args)...));
  }
}
template <class... Args>
void debug(fmt::format_string<Args...> text, Args&&... args) {
  if (enabled(Level::debug)) {
    write(Level::debug, fmt::format(text, std::forward<Args>(args)...));
  }
}

}  // namespace ferry::log
