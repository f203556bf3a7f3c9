// The subcommands of ferry.  Each has a file of its own that declares its options and, when it was the
// one that was given, runs.
#pragma once

#include <functional>
#include <vector>

#include "base/error.h"

namespace CLI {
class App;
}

namespace ferry::program {

struct Command {
  CLI::App* app;  // owned by the root
  bool needs_root = true;
  std::function<Result<void>()> run;  // owns the values that the options were read into
};
using Commands = std::vector<Command>;

void add_checkpoint(CLI::App& root, Commands& commands);
void add_start(CLI::App& root, Commands& commands);
void add_migrate(CLI::App& root, Commands& commands);
void add_moves(CLI::App& root, Commands& commands);
void add_receive(CLI::App& root, Commands& commands);
void add_image(CLI::App& root, Commands& commands);
void add_version(CLI::App& root, Commands& commands);

// Sentences worth knowing that are no errors: to standard error, one a line.
void print_notes(const std::vector<std::string>& notes);

}  // namespace ferry::program
