#include "programs/criu/command_line.h"
#include "programs/criu/option_table.h"

namespace ferry::criu {
namespace {

constexpr std::string_view kCommands = R"(Usage: criu COMMAND [OPTION]…

Checkpoints and restores trees of processes, as CRIU does; this one is part of ferry.

  criu dump --tree PID --images-dir DIR      save a tree
  criu pre-dump --tree PID --images-dir DIR  save its memory while it runs; dump --prev-images-dir
                                             then saves what was written since
  criu restore --images-dir DIR              bring it back
  criu check [--extra | --feature NAME]      test what the kernel offers
  criu cpuinfo dump|check --images-dir DIR   write or compare the processor's features
  criu dedup --images-dir DIR                take out of the parent sets what DIR holds anew
  criu page-server --images-dir DIR --port N take the pages of a dump --page-server on another host
  criu lazy-pages --images-dir DIR           bring memory to a tree that restore --lazy-pages has started
  criu swrk FD                               serve RPC requests on an inherited socket
  criu service --address SOCKET              serve RPC requests on a named socket

Options (--no-NAME takes back what a configuration file switched on):
)";

}  // namespace

std::string help_text() {
  std::string text{kCommands};
  for (const Option& option : options()) {
    if (option.apply == nullptr) {
      continue;
    }
    text += option.letter != 0 ? fmt::format("  -{}, --{}", option.letter, option.name)
                               : fmt::format("      --{}", option.name);
    switch (option.argument) {
      case Argument::none:
        break;
      case Argument::required:
        text += "=VALUE";
        break;
      case Argument::optional:
        text += "[=VALUE]";
        break;
    }
    text += option.negatable ? ", --no-" + std::string(option.name) + "\n" : "\n";
  }
  text += "  -h, --help\n  -V, --version\n\nNot supported, refused by name:\n ";
  std::size_t column = 1;
  for (const Option& option : options()) {
    if (option.apply != nullptr) {
      continue;
    }
    const std::string name = fmt::format(" --{}", option.name);
    if (column + name.size() > 90) {
      text += "\n ";
      column = 1;
    }
    text += name;
    column += name.size();
  }
  return text + "\n";
}

// Podman and scripts take the number after "Version:".
std::string version_text() { return "Version: 4.2\nferry " FERRY_VERSION ", in the place of criu\n"; }

}  // namespace ferry::criu
