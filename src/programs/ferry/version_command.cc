#include <CLI/CLI.hpp>

#include "programs/ferry/command.h"

namespace ferry::program {

void add_version(CLI::App& root, Commands& commands) {
  CLI::App* app = root.add_subcommand("version", "Print the version of ferry");
  commands.push_back({app, false, []() -> Result<void> {
                        fmt::print("ferry {}\n", FERRY_VERSION);
                        return {};
                      }});
}

}  // namespace ferry::program
