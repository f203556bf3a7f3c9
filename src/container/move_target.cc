#include "container/move_target.h"

#include <fcntl.h>

#include <algorithm>
#include <filesystem>

#include "container/containerd.h"
#include "container/image_transfer.h"
#include "container/layer_delta.h"
#include "container/preflight.h"

namespace ferry::container {
namespace {

constexpr std::chrono::seconds kStopLimit(30);

bool is_image_id(const std::string& name) { return name.starts_with("sha256:"); }

}  // namespace

Result<Arrival> Arrival::plan(Docker& docker, const std::string& container_json, const std::string& networks_json,
                              const std::string& volumes_json) {
  Arrival out(docker);
  FERRY_TRY(out.source_, parse_container(container_json));
  FERRY_TRY(out.networks_, decode_networks(networks_json));
  FERRY_TRY(LeavingVolumes volumes, decode_volumes(volumes_json));
  FERRY_TRY(out.volumes_, plan_volumes(docker, std::move(volumes)));
  FERRY_CHECK(out.look());
  return out;
}

Result<void> Arrival::look() {
  FERRY_TRY(DestinationFacts facts, look_at_destination(*docker_, source_));
  for (const LeavingVolume& volume : volumes_.asked.copied) {
    facts.copied_volumes.insert(volume.info.name);
  }
  for (const VolumeInfo& volume : volumes_.asked.made_only) {
    facts.copied_volumes.insert(volume.name);
  }
  FERRY_TRY(plan_, plan_twin(source_, networks_, facts));
  plan_.differences.insert(plan_.differences.end(), volumes_.differences.begin(), volumes_.differences.end());
  image_of_name_ = facts.image_of_name;
  const auto image = docker_->image(source_.image_id);
  if (!image && image.error().kind != Kind::gone) {
    return tl::unexpected<Error>(image.error());
  }
  has_image_ = image.has_value();
  return {};
}

std::vector<std::string> Arrival::obstacles() const {
  std::vector<std::string> out = plan_.obstacles;
  out.insert(out.end(), volumes_.obstacles.begin(), volumes_.obstacles.end());
  for (const Finding& finding : examine_restoring_daemon(*docker_)) {
    if (finding.refuses) {
      out.push_back(finding.text);
    }
  }
  if (docker_->info().storage_driver != "overlay2") {
    out.push_back(fmt::format("the destination's Docker uses the storage driver {}: only overlay2 is supported",
                              docker_->info().storage_driver));
  }
  return out;
}

Result<std::set<std::string>> Arrival::present_chain_ids() const { return container::present_chain_ids(*docker_); }

Result<void> Arrival::load_image(int in_fd) {
  FERRY_CHECK(container::load_image(*docker_, in_fd));
  return look();
}

Result<void> Arrival::create(const std::string& move) {
  if (!has_image_) {
    return fail(Kind::gone, "image {} did not arrive", source_.image_id);
  }
  // A name that means another image here stays with that one.
  if (image_of_name_.empty() && !source_.image_name.empty() && !is_image_id(source_.image_name)) {
    FERRY_CHECK(docker_->tag_image(source_.image_id, source_.image_name));
    FERRY_CHECK(look());
  }
  if (!plan_.obstacles.empty()) {
    return fail(Kind::invalid, "{}", plan_.obstacles.front());
  }
  FERRY_CHECK(make_volumes(*docker_, volumes_, move));
  FERRY_TRY(
      id_,
      docker_->create(plan_.name, plan_.request_json).during("creating container {} on the destination", plan_.name));
  for (const TwinConnection& connection : plan_.connections) {
    FERRY_CHECK(docker_->connect_network(connection.network, connection.request_json)
                    .during("connecting the twin to network {}", connection.network));
  }
  FERRY_TRY(twin_, docker_->container(id_));
  return {};
}

Result<LayerReport> Arrival::unpack_tree(std::uint32_t number, int in_fd) const {
  if (number == 0) {
    return container::unpack_layer(in_fd, twin_.upper_dir);
  }
  FERRY_TRY(const std::string directory, mounted_tree(number));
  // Docker fills an empty volume with what the image has in its place, which the source may have removed.
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    FERRY_CHECK(remove_paths(directory, {entry.path().filename()}));
  }
  return container::unpack_layer(in_fd, directory);
}

Result<UniqueFd> Arrival::open_log(const std::string& suffix) const {
  // ".1", ".12.gz": it becomes part of a path.
  const auto is_known = [](char c) { return (c >= '0' && c <= '9') || c == '.' || c == 'g' || c == 'z'; };
  if (suffix.size() > 12 || !std::all_of(suffix.begin(), suffix.end(), is_known)) {
    return fail(Kind::corrupt, "the source names a log file \"{}\"", suffix);
  }
  const std::string path = fmt::format("{}/{}-json.log{}", docker_->container_dir(id_), id_, suffix);
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0640));
  if (!fd) {
    return sys_fail(fmt::format("open({})", path));
  }
  return fd;
}

Result<Reference> Arrival::refer(const std::string& receiver, const std::vector<std::string>& descriptors,
                                 bool close_tcp) const {
  ReferenceContent content;
  content.receiver = receiver;
  content.close_tcp = close_tcp;
  if (twin_.uts_mode != "host") {
    content.hostname = twin_.hostname;
  }
  return Reference::make(docker_->container_dir(id_) + "/checkpoints", std::move(content), descriptors);
}

Result<std::string> Arrival::mounted_tree(std::uint32_t number) const {
  if (number == 0) {
    // Docker keeps the overlay mounted here, without what is mounted on top of it in the container.
    return twin_.merged_dir;
  }
  if (number > volumes_.asked.copied.size()) {
    return fail(Kind::corrupt, "the source sends directory {}, which it did not offer", number);
  }
  const LeavingVolume& volume = volumes_.asked.copied[number - 1];
  if (volume.is_shm()) {
    return shared_memory_of(*docker_, id_);
  }
  FERRY_TRY(const VolumeInfo here, docker_->volume(volume.info.name));
  return here.mountpoint;
}

Result<void> Arrival::remove_files(std::uint32_t number, const std::vector<std::string>& paths) const {
  FERRY_TRY(const std::string directory, mounted_tree(number));
  return remove_paths(directory, paths);
}

Result<LayerReport> Arrival::unpack_changes(std::uint32_t number, int in_fd) const {
  FERRY_TRY(const std::string directory, mounted_tree(number));
  return container::unpack_layer(in_fd, directory);
}

Result<void> Arrival::finish() {
  if (plan_.restart_policy.name != "no" && !plan_.restart_policy.name.empty()) {
    FERRY_CHECK(docker_->set_restart_policy(id_, plan_.restart_policy)
                    .during("giving container {} its restart policy \"{}\"", plan_.name, plan_.restart_policy.name));
  }
  return {};
}

Result<void> discard_twin(Docker& docker, const std::string& id) {
  FERRY_TRY(const Container twin, docker.container(id));
  Result<void> killed;
  if (twin.running() || twin.status == "paused") {
    killed = docker.kill(id);
  }
  // It may have ended by itself meanwhile, which Docker answers with an error, so that says nothing yet.
  if (auto stopped = docker.wait_until_stopped(id, kStopLimit); !stopped) {
    FERRY_CHECK(std::move(killed).during("ending the twin {}", twin.name));
    return stopped;
  }
  return docker.remove(id).during("removing the twin {}", twin.name);
}

}  // namespace ferry::container
