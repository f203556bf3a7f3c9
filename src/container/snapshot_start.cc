#include <fcntl.h>
#include <sys/stat.h>

#include <optional>

#include "base/unique_fd.h"
#include "container/containerd.h"
#include "container/layer.h"
#include "container/preflight.h"
#include "container/reference.h"
#include "container/small_file.h"
#include "container/snapshot.h"

namespace ferry::container {
namespace {

Result<void> check_stopped(const Container& container) {
  if (container.status == "created" || container.status == "exited") {
    return {};
  }
  return fail(Kind::invalid, "container {} is {}: a checkpoint can only be started in a container that does not run",
              container.name, container.status);
}

Result<void> check_fits(Docker& docker, const Container& container, const Manifest& manifest) {
  FERRY_TRY(const ImageInfo image, docker.image(container.image_id));
  FERRY_TRY(const Manifest target, describe(container, image));
  std::string text;
  for (const std::string& obstacle : restore_obstacles(manifest, target)) {
    text += (text.empty() ? "" : "; ") + obstacle;
  }
  if (!text.empty()) {
    return fail(Kind::invalid, "{}", text);
  }
  return {};
}

// The tar's own end mark is not enough: libarchive takes a stream that was cut between two entries for
// a whole one.
Result<UniqueFd> open_layer(const std::string& path, std::uint64_t expected_bytes) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return sys_fail(fmt::format("open({})", path));
  }
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) {
    return sys_fail(fmt::format("fstat({})", path));
  }
  if (static_cast<std::uint64_t>(info.st_size) != expected_bytes) {
    return fail(Kind::corrupt, "{} has {} bytes, but {} were written", path, info.st_size, expected_bytes);
  }
  return fd;
}

}  // namespace

Result<RestoreReport> start_from_snapshot(Docker& docker, const RestoreOptions& options, const Verifier& verify) {
  FERRY_CHECK(check_checkpoint_name(options.name));
  FERRY_CHECK(check_experimental(docker));
  FERRY_TRY(const Container container, docker.container(options.container));
  FERRY_CHECK(check_stopped(container));
  FERRY_TRY(const std::string directory, checkpoints_directory(docker, container.id, options.checkpoint_dir));
  FERRY_TRY(const CheckpointEntry checkpoint, find_checkpoint(directory, options.name));
  const std::string images = directory + "/" + options.name;
  FERRY_TRY(const std::string descriptors_text, read_small_file(images + "/" + kDescriptorsFile));
  FERRY_TRY(const auto descriptors, decode_descriptors(descriptors_text).during("reading {}", images));

  FERRY_CHECK(verify(images).during("checkpoint {}", images));
  FERRY_CHECK(refuse(examine_restoring_daemon(docker)));
  FERRY_TRY(const HostPid containerd, find_containerd(docker.api()));
  FERRY_CHECK(check_visible(containerd, images));

  RestoreReport report;
  ReferenceContent content{.id = {}, .images = images, .hostname = std::nullopt, .close_tcp = false, .lazy_pages = {}};
  std::optional<LayerSwap> layer;
  if (checkpoint.manifest) {
    const Manifest& manifest = *checkpoint.manifest;
    FERRY_CHECK(check_fits(docker, container, manifest));
    if (manifest.container_id != container.id) {
      content.close_tcp = true;
      if (container.uts_mode != "host") {
        content.hostname = container.hostname;
      }
    }
    FERRY_TRY(const UniqueFd stream, open_layer(images + "/" + kLayerFile, manifest.layer_bytes));
    FERRY_TRY(LayerSwap prepared, LayerSwap::prepare(stream.get(), container.upper_dir));
    layer.emplace(std::move(prepared));
  } else {
    report.notes.push_back(
        fmt::format("checkpoint {} was made by Docker and holds no files: the container keeps its own", options.name));
  }

  if (options.leave_memory) {
    FERRY_TRY(content.lazy_pages, options.leave_memory(images));
  }
  FERRY_TRY(const Reference reference,
            Reference::make(docker.container_dir(container.id) + "/checkpoints", content, descriptors));
  if (layer) {
    FERRY_CHECK(layer->swap());
  }
  FERRY_CHECK(docker.start_from_checkpoint(container.id, reference.name())
                  .during("starting container {} from checkpoint {}", container.name, options.name));
  if (layer) {
    layer->keep();
  }
  return report;
}

}  // namespace ferry::container
