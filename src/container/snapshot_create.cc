#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <ctime>
#include <filesystem>
#include <optional>

#include "base/log.h"
#include "base/unique_fd.h"
#include "container/layer.h"
#include "container/preflight.h"
#include "container/random_id.h"
#include "container/small_file.h"
#include "container/snapshot.h"

namespace ferry::container {
namespace {

constexpr std::chrono::seconds kHealthCheckLimit(60);
constexpr std::chrono::seconds kStopLimit(60);

// A folder under a hidden name until it is complete: a listing never shows half a checkpoint, and a
// killed ferry leaves none that looks whole.
class Draft {
 public:
  static Result<Draft> make(const std::string& directory, const std::string& name) {
    std::error_code failed;
    std::filesystem::create_directories(directory, failed);
    if (failed) {
      return fail(kind_of_errno(failed.value()), "creating {}: {}", directory, failed.message());
    }
    Draft draft;
    draft.final_ = directory + "/" + name;
    struct stat info {};
    if (::lstat(draft.final_.c_str(), &info) == 0) {
      return fail(Kind::invalid, "a checkpoint \"{}\" exists already in {}: remove it, or use another name", name,
                  directory);
    }
    FERRY_TRY(const std::string id, random_id());
    const std::string path = fmt::format("{}/.ferry-{}", directory, id);
    if (::mkdir(path.c_str(), 0700) != 0) {
      return sys_fail(fmt::format("mkdir({})", path));
    }
    draft.path_ = path;
    draft.fd_.reset(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!draft.fd_) {
      return sys_fail(fmt::format("open({})", path));
    }
    return draft;
  }
  Draft(Draft&& other) noexcept
      : path_(std::move(other.path_)), final_(std::move(other.final_)), fd_(std::move(other.fd_)) {
    other.path_.clear();
  }
  Draft& operator=(Draft&&) = delete;
  ~Draft() {
    if (!path_.empty()) {
      std::error_code failed;
      std::filesystem::remove_all(path_, failed);
      if (failed) {
        log::warning("{} could not be removed: {}", path_, failed.message());
      }
    }
  }

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const std::string& path() const { return path_; }
  // Gives it its name.  What is undone afterwards is still removed.
  Result<void> publish() {
    if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, final_.c_str(), RENAME_NOREPLACE) != 0) {
      return sys_fail(fmt::format("renameat2({}, {})", path_, final_));
    }
    path_ = final_;
    return {};
  }
  void keep() { path_.clear(); }

 private:
  Draft() = default;
  std::string path_;
  std::string final_;
  UniqueFd fd_;
};

// Docker starts a container with --restart again as soon as a checkpoint ends it.
class SuspendedRestarts {
 public:
  SuspendedRestarts(Docker& docker, const Container& container) : docker_(docker), container_(container) {}
  SuspendedRestarts(const SuspendedRestarts&) = delete;
  SuspendedRestarts& operator=(const SuspendedRestarts&) = delete;
  ~SuspendedRestarts() {
    if (auto back = resume(); !back) {
      log::warning("{}", back.error().message());
    }
  }
  Result<void> suspend() {
    if (container_.restart_policy.name != "no") {
      FERRY_CHECK(docker_.set_restart_policy(container_.id, {}));
      suspended_ = true;
    }
    return {};
  }
  Result<void> resume() {
    if (std::exchange(suspended_, false)) {
      FERRY_CHECK(docker_.set_restart_policy(container_.id, container_.restart_policy)
                      .during("putting the restart policy \"{}\" of container {} back", container_.restart_policy.name,
                              container_.name));
    }
    return {};
  }

 private:
  Docker& docker_;
  const Container& container_;
  bool suspended_ = false;
};

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  const std::size_t length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return {text, length};
}

Result<std::uint64_t> save_layer(const std::string& upper_dir, const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) {
    return sys_fail(fmt::format("open({})", path));
  }
  FERRY_TRY(const LayerReport report, pack_layer(upper_dir, fd.get()));
  return report.bytes;
}

Result<std::vector<std::string>> examine(Docker& docker, const Container& container, const SnapshotOptions& options) {
  FERRY_CHECK(check_running(container));
  if (container.auto_remove && !options.leave_running) {
    return fail(
        Kind::invalid,
        "container {} was started with --rm, so Docker would remove it as soon as it is checkpointed: add --leave-running",
        container.name);
  }
  FERRY_TRY(const auto findings, examine_source(docker, container, {.drop_exec = options.drop_exec}));
  FERRY_CHECK(refuse(findings));
  FERRY_CHECK(wait_for_health_check(docker, container, kHealthCheckLimit));
  std::vector<std::string> notes;
  for (const Finding& finding : findings) {
    notes.push_back(finding.text);
  }
  if (!container.mounts.empty()) {
    std::string list;
    for (const Mount& mount : container.mounts) {
      list += (list.empty() ? "" : ", ") + mount.destination;
    }
    notes.push_back(fmt::format(
        "the content of {} is not part of the checkpoint: it is a volume or a directory of the host", list));
  }
  return notes;
}

}  // namespace

Result<std::string> checkpoints_directory(const Docker& docker, const std::string& container_id,
                                          const std::string& checkpoint_dir) {
  if (checkpoint_dir.empty()) {
    return docker.container_dir(container_id) + "/checkpoints";
  }
  std::error_code failed;
  const auto absolute = std::filesystem::absolute(checkpoint_dir, failed);
  if (failed) {
    return fail(kind_of_errno(failed.value()), "{}: {}", checkpoint_dir, failed.message());
  }
  return absolute.lexically_normal().string();
}

Result<SnapshotReport> create_snapshot(Docker& docker, const SnapshotOptions& options, const Dumper& dump) {
  FERRY_CHECK(check_checkpoint_name(options.name));
  FERRY_TRY(const Container container, docker.container(options.container));
  SnapshotReport report;
  FERRY_TRY(report.notes, examine(docker, container, options));
  FERRY_TRY(const ImageInfo image, docker.image(container.image_id));
  FERRY_TRY(Manifest manifest, describe(container, image));
  FERRY_TRY(manifest.id, random_id());
  manifest.created = now_utc();

  FERRY_TRY(const ShimInfo shim, find_shim(container.pid, container.id));
  DumpRequest request{
      .pid = container.pid, .facts = {}, .images_dir = -1, .leave_running = options.leave_running, .while_frozen = {}};
  FERRY_TRY(request.facts, runtime_facts(shim, container.pid, container.id));

  FERRY_TRY(const std::string directory, checkpoints_directory(docker, container.id, options.checkpoint_dir));
  FERRY_TRY(Draft draft, Draft::make(directory, options.name));
  request.images_dir = draft.fd();
  FERRY_CHECK(write_new_file(draft.path() + "/" + kDescriptorsFile, encode_descriptors(request.facts.descriptors)));

  SuspendedRestarts restarts(docker, container);
  if (!options.leave_running) {
    FERRY_CHECK(restarts.suspend());
  }
  // The files have to be those of the frozen instant; and when the tree ends, all has to be in place.
  request.while_frozen = [&]() -> Result<void> {
    FERRY_TRY(manifest.layer_bytes, save_layer(container.upper_dir, draft.path() + "/" + kLayerFile));
    FERRY_CHECK(write_new_file(draft.path() + "/" + kManifestFile, encode_manifest(manifest)));
    return draft.publish();
  };
  FERRY_CHECK(dump(request).during("checkpointing container {}", container.name));
  report.path = draft.path();
  report.layer_bytes = manifest.layer_bytes;
  draft.keep();
  if (!options.leave_running) {
    FERRY_CHECK(docker.wait_until_stopped(container.id, kStopLimit));
    FERRY_CHECK(restarts.resume());
  }
  return report;
}

}  // namespace ferry::container
