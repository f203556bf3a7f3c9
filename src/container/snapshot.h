// `ferry checkpoint create` and `ferry start --checkpoint`: a container into a directory, and back.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "container/bundle.h"
#include "container/checkpoint_dir.h"
#include "container/docker.h"

namespace ferry::container {

// What the engine is asked for.  This layer knows Docker and not the engine, so it is handed in.
struct DumpRequest {
  HostPid pid;
  RuntimeFacts facts;
  int images_dir = -1;  // open directory
  bool leave_running = false;
  // To be called once, with the images complete and the tree still frozen; its error undoes the dump.
  std::function<Result<void>()> while_frozen;
};
// Saves the tree; established TCP connections are kept as closed ones, because their peers will not
// wait for a checkpoint on disk.  On success it is gone, or runs on if leave_running; on an error it runs on.
using Dumper = std::function<Result<void>(const DumpRequest&)>;

struct SnapshotOptions {
  std::string container;       // id or name
  std::string name;            // of the checkpoint
  std::string checkpoint_dir;  // empty: Docker's place
  bool leave_running = false;
  bool drop_exec = false;
};
struct SnapshotReport {
  std::string path;
  std::vector<std::string> notes;  // sentences worth showing
  std::uint64_t layer_bytes = 0;
};
// On any error the container runs on as before, with its restart policy, and no directory is left.
Result<SnapshotReport> create_snapshot(Docker& docker, const SnapshotOptions& options, const Dumper& dump);

struct RestoreOptions {
  std::string container;  // exists and does not run
  std::string name;
  std::string checkpoint_dir;  // empty: Docker's place
  // Not empty: memory comes later.  Called when nothing else can be refused, with the directory of the images; the
  // value is the socket of who is going to bring it.
  std::function<Result<std::string>(const std::string& images_dir)> leave_memory{};
};
struct RestoreReport {
  std::vector<std::string> notes;
};
// Says what is wrong with an image set, before anything is changed.
using Verifier = std::function<Result<void>(const std::string& images_dir)>;
// On an error the container does not run and its writable layer is the one it had.
Result<RestoreReport> start_from_snapshot(Docker& docker, const RestoreOptions& options, const Verifier& verify);

// Where the checkpoints of a container are kept: the directory given, made absolute, or Docker's place.
Result<std::string> checkpoints_directory(const Docker& docker, const std::string& container_id,
                                          const std::string& checkpoint_dir);

}  // namespace ferry::container
