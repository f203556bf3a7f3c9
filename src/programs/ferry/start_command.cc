// ferry start --checkpoint NAME [--checkpoint-dir DIR] CONTAINER
#include <CLI/CLI.hpp>

#include <memory>

#include "container/docker.h"
#include "container/snapshot.h"
#include "programs/ferry/command.h"
#include "programs/ferry/held_signals.h"
#include "programs/ferry/image_check.h"

namespace ferry::program {
namespace {

Result<void> start(const container::RestoreOptions& options) {
  FERRY_TRY(container::Docker docker, container::Docker::connect());
  const HeldSignals held;
  FERRY_TRY(const auto report, container::start_from_snapshot(docker, options, verify_images));
  print_notes(report.notes);
  fmt::print("{}\n", options.container);
  return {};
}

}  // namespace

void add_start(CLI::App& root, Commands& commands) {
  CLI::App* app = root.add_subcommand("start", "Start a container from a checkpoint, its own or another's");
  const auto options = std::make_shared<container::RestoreOptions>();
  app->add_option("--checkpoint", options->name, "Name of the checkpoint")->required();
  app->add_option("--checkpoint-dir", options->checkpoint_dir, "Use this directory instead of Docker's own place");
  app->add_option("CONTAINER", options->container, "Name or id of the container")->required();
  commands.push_back({app, true, [options] { return start(*options); }});
}

}  // namespace ferry::program
