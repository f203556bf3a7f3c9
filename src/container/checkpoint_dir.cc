#include "container/checkpoint_dir.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "container/digest.h"
#include "container/image_transfer.h"
#include "container/json.h"
#include "container/small_file.h"

namespace ferry::container {
namespace {

constexpr int kFormatVersion = 1;

bool is_checkpoint(const std::string& path) { return ::access((path + "/inventory.img").c_str(), F_OK) == 0; }

bool shares_nothing(const std::string& mode) { return mode.empty() || mode == "private" || mode == "default"; }

// Only what decides which namespaces the processes live in: a restore cannot change that.
std::string namespace_kind(const std::string& mode) {
  if (mode == "host" || mode.starts_with("container:")) {
    return mode;
  }
  return "own";
}

// "private", "shareable" and "none" differ in what is mounted on /dev/shm.
std::string ipc_kind(const std::string& mode) { return shares_nothing(mode) ? "private" : mode; }

std::uint64_t bytes_below(const std::string& path) {
  std::uint64_t total = 0;
  std::error_code failed;
  for (std::filesystem::recursive_directory_iterator it(path, failed), end; !failed && it != end;
       it.increment(failed)) {
    struct stat info {};
    if (::lstat(it->path().c_str(), &info) == 0) {
      total += static_cast<std::uint64_t>(info.st_blocks) * 512;
    }
  }
  return total;
}

}  // namespace

std::string encode_manifest(const Manifest& m) {
  const Json out = {
      {"version", kFormatVersion},
      {"ferry", FERRY_VERSION},
      {"id", m.id},
      {"created", m.created},
      {"container", {{"id", m.container_id}, {"name", m.container_name}, {"config_digest", m.config_digest}}},
      {"image", {{"id", m.image_id}, {"name", m.image_name}, {"chain_id", m.image_chain_id}}},
      {"hostname", m.hostname},
      {"network_mode", m.network_mode},
      {"ipc_mode", m.ipc_mode},
      {"pid_mode", m.pid_mode},
      {"uts_mode", m.uts_mode},
      {"tty", m.tty},
      {"privileged", m.privileged},
      {"read_only", m.read_only},
      {"mounts", m.mounts},
      {"layer", {{"file", kLayerFile}, {"bytes", m.layer_bytes}}},
  };
  return json_dump(out, 2) + "\n";
}

Result<Manifest> decode_manifest(std::string_view json) {
  FERRY_TRY(const Json root, parse_json(json, kManifestFile));
  if (const auto version = json_int(root, "version"); version != kFormatVersion) {
    return fail(Kind::unsupported, "{} has format version {}, this ferry knows version {}", kManifestFile, version,
                kFormatVersion);
  }
  const Json& container = json_at(root, "container");
  const Json& image = json_at(root, "image");
  const std::int64_t layer_bytes = json_int(json_at(root, "layer"), "bytes");
  Manifest out{.id = json_text(root, "id"),
               .created = json_text(root, "created"),
               .container_id = json_text(container, "id"),
               .container_name = json_text(container, "name"),
               .image_id = json_text(image, "id"),
               .image_name = json_text(image, "name"),
               .image_chain_id = json_text(image, "chain_id"),
               .config_digest = json_text(container, "config_digest"),
               .hostname = json_text(root, "hostname"),
               .network_mode = json_text(root, "network_mode"),
               .ipc_mode = json_text(root, "ipc_mode"),
               .pid_mode = json_text(root, "pid_mode"),
               .uts_mode = json_text(root, "uts_mode"),
               .tty = json_bool(root, "tty"),
               .privileged = json_bool(root, "privileged"),
               .read_only = json_bool(root, "read_only"),
               .mounts = json_texts(json_at(root, "mounts")),
               .layer_bytes = static_cast<std::uint64_t>(layer_bytes)};
  if (out.id.empty() || out.container_id.empty() || out.image_chain_id.empty() || layer_bytes <= 0) {
    return fail(Kind::corrupt, "{} lacks the id, the container, the image or the layer", kManifestFile);
  }
  return out;
}

Result<Manifest> describe(const Container& container, const ImageInfo& image) {
  FERRY_TRY(const Json inspect, parse_json(container.inspect_json, "the description of the container"));
  const auto chains = chain_ids(image.diff_ids);
  Manifest out{.container_id = container.id,
               .container_name = container.name,
               .image_id = image.id,
               .image_name = container.image_name,
               .image_chain_id = chains.empty() ? "none" : chains.back(),
               .config_digest = sha256_of(json_dump(json_at(inspect, "Config"))),
               .hostname = container.hostname,
               .network_mode = container.network_mode,
               .ipc_mode = container.ipc_mode,
               .pid_mode = container.pid_mode,
               .uts_mode = container.uts_mode,
               .tty = container.tty,
               .privileged = container.privileged,
               .read_only = json_bool(json_at(inspect, "HostConfig"), "ReadonlyRootfs")};
  for (const Mount& mount : container.mounts) {
    out.mounts.push_back(mount.destination);
  }
  std::sort(out.mounts.begin(), out.mounts.end());
  return out;
}

std::vector<std::string> restore_obstacles(const Manifest& manifest, const Manifest& target) {
  std::vector<std::string> out;
  const auto add = [&](std::string text) { out.push_back(std::move(text)); };
  if (manifest.image_chain_id != target.image_chain_id) {
    add(fmt::format("the checkpoint was taken from image {}, but container {} is made from another one ({})",
                    manifest.image_name, target.container_name, target.image_name));
  }
  if (manifest.tty != target.tty) {
    add(fmt::format(
        "the checkpointed container was started with{} a terminal, container {} with{} one: create it with{} --tty",
        manifest.tty ? "" : "out", target.container_name, target.tty ? "" : "out", manifest.tty ? "" : "out"));
  }
  if (manifest.privileged != target.privileged) {
    add(fmt::format("only one of the two containers is privileged: create {} with{} --privileged",
                    target.container_name, manifest.privileged ? "" : "out"));
  }
  if (manifest.read_only != target.read_only) {
    add(fmt::format("only one of the two containers has a read-only root: create {} with{} --read-only",
                    target.container_name, manifest.read_only ? "" : "out"));
  }
  for (const auto& [kind, one, other] :
       {std::tuple{"network", namespace_kind(manifest.network_mode), namespace_kind(target.network_mode)},
        std::tuple{"pid", namespace_kind(manifest.pid_mode), namespace_kind(target.pid_mode)},
        std::tuple{"uts", namespace_kind(manifest.uts_mode), namespace_kind(target.uts_mode)},
        std::tuple{"ipc", ipc_kind(manifest.ipc_mode), ipc_kind(target.ipc_mode)}}) {
    if (one != other) {
      add(fmt::format("the checkpointed container had --{} {}, container {} has --{} {}", kind, one,
                      target.container_name, kind, other));
    }
  }
  for (const std::string& path : manifest.mounts) {
    if (std::find(target.mounts.begin(), target.mounts.end(), path) == target.mounts.end()) {
      add(fmt::format("the checkpointed container had a mount at {}: create {} with one", path, target.container_name));
    }
  }
  for (const std::string& path : target.mounts) {
    if (std::find(manifest.mounts.begin(), manifest.mounts.end(), path) == manifest.mounts.end()) {
      add(fmt::format("container {} has a mount at {}, which the checkpointed container had not: create it without",
                      target.container_name, path));
    }
  }
  return out;
}

Result<void> check_checkpoint_name(std::string_view name) {
  const auto is_word = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  const bool good =
      name.size() >= 2 && name.size() <= 128 && is_word(name.front()) &&
      std::all_of(name.begin(), name.end(), [&](char c) { return is_word(c) || c == '_' || c == '.' || c == '-'; });
  if (!good) {
    return fail(
        Kind::invalid,
        "\"{}\" is no name for a checkpoint: use two or more letters, digits, '_', '.' or '-', and begin with a letter or digit",
        name);
  }
  return {};
}

Result<CheckpointEntry> find_checkpoint(const std::string& directory, const std::string& name) {
  FERRY_CHECK(check_checkpoint_name(name));
  const std::string path = directory + "/" + name;
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return fail(Kind::gone, "there is no checkpoint \"{}\" in {}", name, directory);
  }
  if (!is_checkpoint(path)) {
    return fail(Kind::corrupt, "{} is not a checkpoint: it has no inventory.img", path);
  }
  CheckpointEntry out{.name = name, .manifest = std::nullopt, .bytes = bytes_below(path)};
  const std::string manifest_path = path + "/" + kManifestFile;
  if (::access(manifest_path.c_str(), F_OK) == 0) {
    FERRY_TRY(const std::string text, read_small_file(manifest_path));
    FERRY_TRY(out.manifest, decode_manifest(text).during("reading {}", path));
  }
  return out;
}

Result<std::vector<CheckpointEntry>> list_checkpoints(const std::string& directory) {
  std::vector<CheckpointEntry> out;
  std::error_code failed;
  for (std::filesystem::directory_iterator it(directory, failed), end; !failed && it != end; it.increment(failed)) {
    const std::string name = it->path().filename().string();
    if (!check_checkpoint_name(name) || !is_checkpoint(it->path().string())) {
      continue;
    }
    FERRY_TRY(CheckpointEntry entry, find_checkpoint(directory, name));
    out.push_back(std::move(entry));
  }
  if (failed && failed != std::errc::no_such_file_or_directory) {
    return fail(kind_of_errno(failed.value()), "listing {}: {}", directory, failed.message());
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

Result<void> remove_checkpoint_dir(const std::string& directory, const std::string& name) {
  FERRY_CHECK(check_checkpoint_name(name));
  const std::string path = directory + "/" + name;
  if (::access(path.c_str(), F_OK) != 0) {
    return fail(Kind::gone, "there is no checkpoint \"{}\" in {}", name, directory);
  }
  if (!is_checkpoint(path)) {
    return fail(Kind::invalid, "{} is not a checkpoint (it has no inventory.img), so it was left alone", path);
  }
  std::error_code failed;
  std::filesystem::remove_all(path, failed);
  if (failed) {
    return fail(kind_of_errno(failed.value()), "removing {}: {}", path, failed.message());
  }
  return {};
}

}  // namespace ferry::container
