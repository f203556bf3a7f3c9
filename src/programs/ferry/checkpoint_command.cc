// ferry checkpoint create|ls|rm|inspect, in the words of docker checkpoint.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "container/checkpoint_dir.h"
#include "container/docker.h"
#include "container/snapshot.h"
#include "programs/ferry/command.h"
#include "programs/ferry/engine_dump.h"
#include "programs/ferry/held_signals.h"

namespace ferry::program {
namespace {

using container::Docker;

struct Place {  // what all four share
  std::string container;
  std::string checkpoint;
  std::string directory;
};

Result<std::string> resolve(Docker& docker, const Place& place) {
  FERRY_TRY(const container::Container found, docker.container(place.container));
  return container::checkpoints_directory(docker, found.id, place.directory);
}

Result<void> create(const container::SnapshotOptions& options) {
  FERRY_TRY(Docker docker, Docker::connect());
  const HeldSignals held;
  FERRY_TRY(const auto report, container::create_snapshot(docker, options, dump_with_engine));
  print_notes(report.notes);
  fmt::print("{}\n", options.name);
  return {};
}

Result<void> list(const Place& place) {
  FERRY_TRY(Docker docker, Docker::connect());
  FERRY_TRY(const std::string directory, resolve(docker, place));
  FERRY_TRY(const auto entries, container::list_checkpoints(directory));
  std::size_t width = std::string_view("CHECKPOINT NAME").size();
  for (const auto& entry : entries) {
    width = std::max(width, entry.name.size());
  }
  fmt::print("{:<{}}   {:<20}   {:>9}   {}\n", "CHECKPOINT NAME", width, "CREATED", "MIB", "CONTAINER");
  for (const auto& entry : entries) {
    fmt::print("{:<{}}   {:<20}   {:>9.1f}   {}\n", entry.name, width,
               entry.manifest ? entry.manifest->created : "by Docker", static_cast<double>(entry.bytes) / (1 << 20),
               entry.manifest ? entry.manifest->container_name : "");
  }
  return {};
}

Result<void> remove(const Place& place) {
  FERRY_TRY(Docker docker, Docker::connect());
  FERRY_TRY(const std::string directory, resolve(docker, place));
  FERRY_CHECK(container::remove_checkpoint_dir(directory, place.checkpoint));
  return {};
}

Result<void> inspect(const Place& place) {
  FERRY_TRY(Docker docker, Docker::connect());
  FERRY_TRY(const std::string directory, resolve(docker, place));
  FERRY_TRY(const auto entry, container::find_checkpoint(directory, place.checkpoint));
  if (!entry.manifest) {
    return fail(
        Kind::unsupported,
        "checkpoint {} was made by Docker, which keeps nothing about it but its name (ferry image show {}/{} prints its images)",
        place.checkpoint, directory, place.checkpoint);
  }
  fmt::print("{}", container::encode_manifest(*entry.manifest));
  return {};
}

void add_place(CLI::App& app, Place& place, bool with_checkpoint) {
  app.add_option("--checkpoint-dir", place.directory, "Use this directory instead of Docker's own place");
  app.add_option("CONTAINER", place.container, "Name or id of the container")->required();
  if (with_checkpoint) {
    app.add_option("CHECKPOINT", place.checkpoint, "Name of the checkpoint")->required();
  }
}

}  // namespace

void add_checkpoint(CLI::App& root, Commands& commands) {
  CLI::App* group = root.add_subcommand("checkpoint", "Keep running containers in a directory");
  group->require_subcommand(1);
  const auto place = std::make_shared<Place>();
  const auto options = std::make_shared<container::SnapshotOptions>();

  CLI::App* created = group->add_subcommand("create", "Checkpoint a running container");
  add_place(*created, *place, true);
  created->add_flag("--leave-running", options->leave_running, "Let the container run on");
  created->add_flag("--drop-exec", options->drop_exec, "Go on although docker exec sessions are not kept");
  commands.push_back({created, true, [place, options] {
                        options->container = place->container;
                        options->name = place->checkpoint;
                        options->checkpoint_dir = place->directory;
                        return create(*options);
                      }});

  CLI::App* listed = group->add_subcommand("ls", "List the checkpoints of a container");
  add_place(*listed, *place, false);
  commands.push_back({listed, true, [place] { return list(*place); }});

  CLI::App* removed = group->add_subcommand("rm", "Remove a checkpoint");
  add_place(*removed, *place, true);
  commands.push_back({removed, true, [place] { return remove(*place); }});

  CLI::App* inspected = group->add_subcommand("inspect", "Print what is known about a checkpoint as JSON");
  add_place(*inspected, *place, true);
  commands.push_back({inspected, true, [place] { return inspect(*place); }});
}

}  // namespace ferry::program
