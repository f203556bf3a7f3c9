// ferry start --checkpoint NAME [--checkpoint-dir DIR] [--lazy] CONTAINER
#include <CLI/CLI.hpp>
#include <memory>
#include <optional>

#include "container/docker.h"
#include "container/snapshot.h"
#include "programs/ferry/command.h"
#include "programs/ferry/held_signals.h"
#include "programs/ferry/image_check.h"
#include "programs/ferry/lazy_keeper.h"

namespace ferry::program {
namespace {

Result<void> start(container::RestoreOptions options, bool lazily) {
  FERRY_TRY(container::Docker docker, container::Docker::connect());
  const HeldSignals held;
  std::optional<LazyKeeper> keeper;
  if (lazily) {
    options.leave_memory = [&keeper](const std::string& images) -> Result<std::string> {
      FERRY_TRY(auto started, LazyKeeper::start(images));
      keeper.emplace(std::move(started));
      return keeper->socket();
    };
  }
  FERRY_TRY(const auto report, container::start_from_snapshot(docker, options, verify_images));
  if (keeper) {
    keeper->leave();
  }
  print_notes(report.notes);
  fmt::print("{}\n", options.container);
  return {};
}

}  // namespace

void add_start(CLI::App& root, Commands& commands) {
  CLI::App* app = root.add_subcommand("start", "Start a container from a checkpoint, its own or another's");
  const auto options = std::make_shared<container::RestoreOptions>();
  const auto lazily = std::make_shared<bool>(false);
  app->add_option("--checkpoint", options->name, "Name of the checkpoint")->required();
  app->add_option("--checkpoint-dir", options->checkpoint_dir, "Use this directory instead of Docker's own place");
  app->add_flag("--lazy", *lazily, "Run at once, and bring the memory when it is touched and in the background");
  app->add_option("CONTAINER", options->container, "Name or id of the container")->required();
  commands.push_back({app, true, [options, lazily] { return start(*options, *lazily); }});
}

}  // namespace ferry::program
