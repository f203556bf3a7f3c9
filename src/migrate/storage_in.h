// The destination's side of a move's files.  What arrives is written below the directories of the twin and nowhere
// else.
#pragma once

#include <cstdint>
#include <functional>

#include "base/error.h"
#include "container/move_target.h"
#include "migrate/link.h"

namespace ferry::migrate {

namespace wire {
class Layer;
class Delta;
class Blocks;
class Patch;
}  // namespace wire

class StorageIn {
 public:
  // `control` carries the messages, and streams outside of the freeze while the twin is started.
  StorageIn(Link& control, const container::Arrival& arrival) : control_(control), arrival_(arrival) {}

  // Each of them answers, except for what comes within the freeze.  `way`: the connection that carries streams.
  Result<void> layer(const wire::Layer& layer, Link& way);
  Result<void> delta(const wire::Delta& delta, Link& way);
  Result<void> blocks(const wire::Blocks& blocks);
  Result<void> patch(const wire::Patch& patch, Link& way);

 private:
  Result<void> done(std::uint64_t bytes, std::uint64_t entries = 0);
  Link& control_;
  const container::Arrival& arrival_;
};

}  // namespace ferry::migrate
