// The place of a container that arrives on this host: the twin, from its plan to its life.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "container/docker.h"
#include "container/layer.h"
#include "container/reference.h"
#include "container/twin.h"
#include "container/volume.h"

namespace ferry::container {

class Arrival {
 public:
  // Looks, changes nothing.
  static Result<Arrival> plan(Docker& docker, const std::string& container_json, const std::string& networks_json,
                              const std::string& volumes_json);
  Arrival(Arrival&&) = default;
  Arrival& operator=(Arrival&&) = delete;

  // Sentences; with one the move is impossible.
  [[nodiscard]] std::vector<std::string> obstacles() const;
  [[nodiscard]] const std::string& name() const { return plan_.name; }
  // What it is given by finish().
  [[nodiscard]] const RestartPolicy& restart_policy() const { return plan_.restart_policy; }
  [[nodiscard]] const std::vector<std::string>& differences() const { return plan_.differences; }
  [[nodiscard]] bool keeps_addresses() const { return plan_.keeps_addresses; }
  [[nodiscard]] bool has_image() const { return has_image_; }
  Result<std::set<std::string>> present_layers() const { return present_chain_ids(); }

  Result<void> load_image(int in_fd);
  [[nodiscard]] const ArrivingVolumes& volumes() const { return volumes_; }
  // Makes the volumes and the container; from now on there is something to remove.
  Result<void> create(const std::string& move);
  [[nodiscard]] const std::string& id() const { return id_; }
  // The directories that come along have numbers: 0 is the writable layer, then the volumes in the order of the offer.
  // Before the twin is started for the first time: all of one.
  Result<LayerReport> unpack_tree(std::uint32_t number, int in_fd) const;
  // A file of the log, as it was named on the source.
  Result<UniqueFd> open_log(const std::string& suffix) const;
  // The checkpoint directory that names a receiver's socket.
  Result<Reference> refer(const std::string& receiver, const std::vector<std::string>& descriptors,
                          bool close_tcp) const;

  // While it is mounted, what changed on the source; the layer through the container's own view.
  Result<void> remove_files(std::uint32_t number, const std::vector<std::string>& paths) const;
  Result<LayerReport> unpack_changes(std::uint32_t number, int in_fd) const;
  [[nodiscard]] Result<std::string> mounted_tree(std::uint32_t number) const;

  // The restart policy it had on the source.
  Result<void> finish();

 private:
  explicit Arrival(Docker& docker) : docker_(&docker) {}
  [[nodiscard]] Result<std::set<std::string>> present_chain_ids() const;
  Result<void> look();

  Docker* docker_;
  Container source_;
  std::map<std::string, Network> networks_;
  ArrivingVolumes volumes_;
  TwinPlan plan_;
  std::string image_of_name_;
  bool has_image_ = false;
  std::string id_;
  Container twin_;
};

// Ends and removes a container, whatever its state; its volumes are not touched.
Result<void> discard_twin(Docker& docker, const std::string& id);

}  // namespace ferry::container
