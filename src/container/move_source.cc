#include "container/move_source.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "container/json_log.h"
#include "container/preflight.h"
#include "container/twin.h"

namespace ferry::container {
namespace {

constexpr std::chrono::seconds kHealthCheckLimit(60);
constexpr std::chrono::seconds kStopLimit(60);

Result<UniqueFd> open_log(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    return sys_fail(fmt::format("open({})", path));
  }
  return fd;
}

Result<struct stat> look_at(const UniqueFd& fd) {
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) {
    return sys_fail("fstat(log)");
  }
  return info;
}

// What docker update can change, and the twin was made with.
nlohmann::json settings_of(const Container& container) {
  const auto all = nlohmann::json::parse(container.inspect_json, nullptr, false);
  nlohmann::json settings =
      all.is_object() ? all.value("HostConfig", nlohmann::json::object()) : nlohmann::json::object();
  settings.erase("RestartPolicy");  // we change that ourselves
  return settings;
}

}  // namespace

Result<LeavingLog> LeavingLog::open(const std::string& path) {
  LeavingLog log;
  log.path_ = path;
  return log;
}

Result<std::vector<LeavingLog::Piece>> LeavingLog::earlier() {
  std::vector<Piece> out;
  if (path_.empty()) {
    return out;
  }
  FERRY_TRY(const auto files, log_files(path_));
  for (const std::string& file : files) {
    if (file == path_) {
      continue;
    }
    Piece piece{.suffix = file.substr(path_.size()), .fd = {}, .from = 0, .to = 0};
    FERRY_TRY(piece.fd, open_log(file));
    FERRY_TRY(const auto info, look_at(piece.fd));
    piece.to = static_cast<std::uint64_t>(info.st_size);
    out.push_back(std::move(piece));
  }
  FERRY_TRY(current_, open_log(path_));
  FERRY_TRY(taken_, whole_log_length(current_.get()));
  Piece piece{.suffix = {}, .fd = {}, .from = 0, .to = taken_};
  FERRY_TRY(piece.fd, open_log(fmt::format("/proc/self/fd/{}", current_.get())));
  out.push_back(std::move(piece));
  return out;
}

Result<std::vector<LeavingLog::Piece>> LeavingLog::rest() const {
  std::vector<Piece> out;
  if (!current_) {
    return out;
  }
  FERRY_TRY(const auto ours, look_at(current_));
  const auto size = static_cast<std::uint64_t>(ours.st_size);
  Piece tail{
      .suffix = {}, .fd = {}, .from = size < taken_ ? 0 : taken_, .to = size};  // shorter: truncated, and begun again
  FERRY_TRY(tail.fd, open_log(fmt::format("/proc/self/fd/{}", current_.get())));
  out.push_back(std::move(tail));
  // Files that were begun after ours was put aside.  One that cannot be opened any more (--rm) is ours.
  FERRY_TRY(const auto files, log_files(path_));
  std::vector<Piece> newer;
  for (const std::string& file : files) {
    if (file.ends_with(".gz")) {
      continue;
    }
    Piece piece;
    FERRY_TRY(piece.fd, open_log(file));
    FERRY_TRY(const auto info, look_at(piece.fd));
    if (info.st_dev == ours.st_dev && info.st_ino == ours.st_ino) {
      newer.clear();
      continue;
    }
    piece.to = static_cast<std::uint64_t>(info.st_size);
    newer.push_back(std::move(piece));
  }
  for (Piece& piece : newer) {
    out.push_back(std::move(piece));
  }
  return out;
}

Result<Departure> Departure::prepare(Docker& docker, const Options& options) {
  Departure out(docker);
  out.options_ = options;
  FERRY_TRY(out.container_, docker.container(options.container));
  FERRY_CHECK(check_running(out.container_));
  FERRY_TRY(const auto findings,
            examine_source(docker, out.container_, {.drop_exec = options.drop_exec, .moving = true}));
  FERRY_CHECK(refuse(findings));
  for (const Finding& finding : findings) {
    out.notes_.push_back(finding.text);
  }
  if (out.container_.auto_remove && options.keep_source) {
    return fail(Kind::invalid,
                "container {} was started with --rm, so Docker removes it when it has left: it cannot be kept",
                out.container_.name);
  }
  if (out.container_.auto_remove) {
    out.notes_.push_back(
        fmt::format("container {} was started with --rm; on the destination it is not removed by itself when it ends",
                    out.container_.name));
  }
  FERRY_TRY(out.volumes_, choose_volumes(docker, out.container_, options.volumes));
  out.notes_.insert(out.notes_.end(), out.volumes_.notes.begin(), out.volumes_.notes.end());
  FERRY_TRY(out.image_, docker.image(out.container_.image_id));
  FERRY_TRY(out.networks_, networks_of(docker, out.container_));
  FERRY_TRY(const ShimInfo shim, find_shim(out.container_.pid, out.container_.id));
  FERRY_TRY(out.facts_, runtime_facts(shim, out.container_.pid, out.container_.id));
  return out;
}

Result<void> Departure::suspend_restarts() {
  if (has_restarts()) {
    FERRY_CHECK(docker_->set_restart_policy(container_.id, {}));
    suspended_ = true;
  }
  return {};
}

Result<void> Departure::resume_restarts() {
  if (std::exchange(suspended_, false)) {
    auto back = docker_->set_restart_policy(container_.id, container_.restart_policy);
    if (!back && back.error().kind == Kind::gone) {
      return {};  // it was removed meanwhile
    }
    FERRY_CHECK(std::move(back).during("putting the restart policy \"{}\" of container {} back",
                                       container_.restart_policy.name, container_.name));
  }
  return {};
}

Result<void> Departure::check_again() {
  FERRY_TRY(const Container now, docker_->container(container_.id));
  FERRY_CHECK(check_running(now));
  if (now.name != container_.name) {
    return fail(Kind::invalid, "container {} was renamed to {} during the move: move it again", container_.name,
                now.name);
  }
  if (settings_of(now) != settings_of(container_)) {
    return fail(Kind::invalid, "the settings of container {} were changed during the move: move it again",
                container_.name);
  }
  if (now.pid != container_.pid) {
    return fail(Kind::invalid, "container {} was started anew during the move", container_.name);
  }
  FERRY_TRY(const auto findings, examine_source(*docker_, now, {.drop_exec = options_.drop_exec, .moving = true}));
  FERRY_CHECK(refuse(findings));
  return wait_for_health_check(*docker_, now, kHealthCheckLimit);
}

std::vector<LeavingTree> Departure::trees() const {
  std::vector<LeavingTree> out;
  out.push_back(LeavingTree::overlay(container_.upper_dir, container_.merged_dir));
  for (const LeavingVolume& volume : volumes_.copied) {
    out.push_back(LeavingTree::plain(volume.info.mountpoint));
  }
  return out;
}

Result<void> Departure::wait_until_stopped() { return docker_->wait_until_stopped(container_.id, kStopLimit); }

Result<void> Departure::leave(bool keep) {
  // Not with its restart policy: a daemon that restarts would bring it to a second life.
  suspended_ = false;
  if (keep) {
    return {};
  }
  // Anonymous volumes belong to the container, and their content is where it is now.
  auto removed = docker_->remove(container_.id, !options_.volumes.none && options_.volumes.only.empty());
  if (!removed && removed.error().kind == Kind::gone) {
    return {};  // --rm
  }
  return std::move(removed).during("removing container {}, which runs on the destination now", container_.name);
}

}  // namespace ferry::container
