// Configuration files: one option a line, without its dashes (docs/criu.md has the syntax).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "programs/criu/settings.h"

namespace ferry::criu {

struct ConfigLine {
  int number = 0;
  std::string option;
  std::string value;
  bool has_value = false;
};

// Errors: invalid, naming the line.
Result<std::vector<ConfigLine>> parse_config(std::string_view text);

// Reads one file over the settings.  A file that cannot be opened is none: runc names
// /etc/criu/runc.conf with every request, and most hosts have no such file.
// Errors: as apply_option, naming file and line; invalid for an unknown option.
Result<void> apply_config_file(Settings& settings, const std::string& path);

// The files that are read without being named: /etc/criu/default.conf, $HOME/.criu/default.conf,
// both unless settings.default_config is off, then $CRIU_CONFIG_FILE, then settings.config_file.
Result<void> apply_config_files(Settings& settings);

}  // namespace ferry::criu
