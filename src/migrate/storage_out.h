// The source's side of a move's files: directories are copied while the container writes to them, and what changed
// since follows, in every round of memory and at last within the freeze.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "container/leaving_tree.h"
#include "container/move_source.h"
#include "image/set.h"
#include "migrate/file_patch.h"
#include "migrate/link.h"
#include "migrate/storage_watch.h"

namespace ferry::migrate {

class StorageOut {
 public:
  explicit StorageOut(const container::Departure& departure);
  StorageOut(const StorageOut&) = delete;
  StorageOut& operator=(const StorageOut&) = delete;

  // Begins to watch and sends all, before the twin is started.  `way` carries the streams.
  Result<void> send_all(Link& control, Link& way, const std::function<void(std::uint64_t)>& on_bytes);
  // Why everything is looked at within the freeze; empty if it is not.
  [[nodiscard]] const std::string& why_it_looks() const { return why_it_looks_; }

  // What has changed since, while the container runs on and the twin is started.  The value says how long that took.
  Result<double> send_changes(Link& control);
  // Whether the last changes were so many that another round makes the rest smaller.
  [[nodiscard]] bool worth_another(double pause_ms) const;
  // Within the freeze.
  Result<void> send_rest(Link& control, Link& way, const image::Set& set);

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }      // of all streams
  [[nodiscard]] std::uint64_t rest_bytes() const { return rest_; }  // of those within the freeze
  [[nodiscard]] std::size_t trees() const { return trees_.size(); }

 private:
  struct Suspects {  // by tree: may have changed unheard
    std::vector<std::set<std::string>> looked_at;
    std::vector<std::set<std::string>> mapped;
  };
  [[nodiscard]] std::optional<std::pair<std::size_t, std::string>> place_of(const std::string& path) const;
  [[nodiscard]] Suspects suspects_in(const image::Set& set) const;
  Result<void> send_tree_changes(Link& control, Link& way, Suspects suspects, bool freeze);
  Result<void> send_delta(Link& control, Link& way, std::size_t tree, const container::TreeChanges& changes,
                          bool freeze);
  // False if it is not there, or is none any more here.
  Result<bool> send_patch(Link& control, Link& way, std::size_t tree, const std::string& path, bool freeze);
  Result<void> remember_mapped();

  std::string cgroup_;
  std::vector<container::LeavingTree> trees_;
  std::vector<std::pair<std::string, std::optional<std::size_t>>> mounts_;  // where in the container, which tree
  std::set<std::size_t> late_;  // that exist at the destination only when the twin is started
  std::optional<StorageWatch> watch_;
  std::string why_it_looks_;
  std::vector<std::set<std::string>> ever_mapped_;
  std::map<std::pair<std::size_t, std::string>, std::vector<BlockSum>> sums_;  // of files at the destination
  std::uint64_t bytes_ = 0;
  std::uint64_t rest_ = 0;
  double last_ms_ = 0;
  double before_ms_ = 0;
};

}  // namespace ferry::migrate
