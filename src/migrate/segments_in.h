// Shared memory of the tree that is not on a mounted file system, on the destination: files that the twin will map,
// made and filled before the tree is.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/set.h"
#include "migrate/page_batch.h"
#include "state/options.h"

namespace ferry::migrate {

class SegmentsIn {
 public:
  // An empty file for each that the source has seen.
  static Result<SegmentsIn> make(const image::Set& look);
  SegmentsIn() = default;

  [[nodiscard]] bool has(image::Name pagemap) const;
  // Pages of one that is here.  Several threads may bring them at the same time.
  Result<void> put(image::Name pagemap, std::span<const ArrivedPages> runs) const;
  // What the restore is given.  The descriptors stay ours.
  [[nodiscard]] std::vector<state::InheritFd> handed_in() const;

 private:
  std::map<std::uint32_t, UniqueFd> files_;  // by shmid
};

}  // namespace ferry::migrate
