// A container that is to leave this host: what Docker knows of it, and what has to be done to it here.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "container/bundle.h"
#include "container/docker.h"
#include "container/leaving_tree.h"
#include "container/volume.h"

namespace ferry::container {

// The log of a container that goes on writing, read twice: what is there while it runs, and the rest
// when Docker has closed it.  Rotation in between is followed.
class LeavingLog {
 public:
  // An empty path (driver none) has nothing to read.
  static Result<LeavingLog> open(const std::string& path);

  struct Piece {
    std::string suffix;  // ".1" and the like for a file that was finished earlier, empty for the current one
    UniqueFd fd;
    std::uint64_t from = 0;
    std::uint64_t to = 0;
  };
  // What is there now, oldest first; of the current file only whole lines.
  Result<std::vector<Piece>> earlier();
  // What came after that, oldest first; to be appended to the current file.
  Result<std::vector<Piece>> rest() const;

 private:
  std::string path_;
  UniqueFd current_;
  std::uint64_t taken_ = 0;
};

class Departure {
 public:
  struct Options {
    std::string container;  // id or name
    bool drop_exec = false;
    bool keep_source = false;
    VolumeChoice volumes;
  };
  // Looks, changes nothing.  Errors: all that Docker knows to be in the way, in one sentence.
  static Result<Departure> prepare(Docker& docker, const Options& options);
  Departure(Departure&&) = default;
  Departure& operator=(Departure&&) = delete;

  [[nodiscard]] const Container& container() const { return container_; }
  [[nodiscard]] const RuntimeFacts& facts() const { return facts_; }
  [[nodiscard]] const ImageInfo& image() const { return image_; }
  [[nodiscard]] const std::map<std::string, Network>& networks() const { return networks_; }
  [[nodiscard]] const std::vector<std::string>& notes() const { return notes_; }

  [[nodiscard]] bool has_restarts() const {
    return container_.restart_policy.name != "no" && !container_.restart_policy.name.empty();
  }
  // Docker must not start it again while two hosts agree on who has it.
  Result<void> suspend_restarts();
  Result<void> resume_restarts();
  // What may have begun since prepare().
  Result<void> check_again();

  [[nodiscard]] const LeavingVolumes& volumes() const { return volumes_; }
  // The directories that go along: the writable layer, then the volumes in their order.
  [[nodiscard]] std::vector<LeavingTree> trees() const;

  Result<LeavingLog> log() const {
    return LeavingLog::open(container_.log_driver == "none" ? "" : container_.log_path);
  }

  // After its processes were killed: Docker knows that it is stopped, and its log is complete.
  Result<void> wait_until_stopped();
  // Removed, or kept stopped.
  Result<void> leave(bool keep);

 private:
  explicit Departure(Docker& docker) : docker_(&docker) {}
  Docker* docker_;
  Options options_;
  Container container_;
  RuntimeFacts facts_;
  ImageInfo image_;
  std::map<std::string, Network> networks_;
  std::vector<std::string> notes_;
  LeavingVolumes volumes_;
  bool suspended_ = false;
};

}  // namespace ferry::container
