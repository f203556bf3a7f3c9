// Checkpoints kept in a directory: one folder each, holding everything that a restore needs.
//
// DIRECTORY/NAME/  the image set and descriptors.json, as Docker lays them out
//                  ferry.json  what was checkpointed (Manifest)
//                  layer.tar   the writable layer at that instant
// A folder without ferry.json was made by Docker itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "container/docker.h"

namespace ferry::container {

inline constexpr const char* kManifestFile = "ferry.json";
inline constexpr const char* kLayerFile = "layer.tar";
inline constexpr const char* kDescriptorsFile = "descriptors.json";

struct Manifest {
  std::string id{};       // random: tells apart what is byte-identical otherwise
  std::string created{};  // RFC 3339, UTC
  std::string container_id;
  std::string container_name;
  std::string image_id;
  std::string image_name;
  std::string image_chain_id;  // of its topmost layer
  std::string config_digest;   // of the container's configuration, for comparing two checkpoints
  std::string hostname;
  std::string network_mode;
  std::string ipc_mode;
  std::string pid_mode;
  std::string uts_mode;
  bool tty = false;
  bool privileged = false;
  bool read_only = false;
  std::vector<std::string> mounts{};  // destinations of binds and volumes
  std::uint64_t layer_bytes = 0;
};
std::string encode_manifest(const Manifest& manifest);
// Errors: corrupt; unsupported for a version of the format that we do not know.
Result<Manifest> decode_manifest(std::string_view json);

// Everything but id, created and layer_bytes.
Result<Manifest> describe(const Container& container, const ImageInfo& image);

// Sentences: why this checkpoint cannot be restored into this container.  Empty if it can.
std::vector<std::string> restore_obstacles(const Manifest& manifest, const Manifest& target);

// Docker's rule for names of checkpoints and containers; it also keeps them from being paths.
Result<void> check_checkpoint_name(std::string_view name);

struct CheckpointEntry {
  std::string name;
  std::optional<Manifest> manifest;  // none: made by Docker
  std::uint64_t bytes = 0;           // on disk
};
// Sorted by name.  A directory that does not exist holds none.  Other folders are passed over.
Result<std::vector<CheckpointEntry>> list_checkpoints(const std::string& directory);
// Errors: gone, naming what was looked for; corrupt.
Result<CheckpointEntry> find_checkpoint(const std::string& directory, const std::string& name);
// Removes a checkpoint and nothing else: a folder without images is refused.
Result<void> remove_checkpoint_dir(const std::string& directory, const std::string& name);

}  // namespace ferry::container
