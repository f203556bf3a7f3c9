// A ring made again, by the thread that it belongs to.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/file_kinds.pb.h"
#include "state/restore.h"

namespace ferry::state::io_uring {

// The positions of a ring can only be brought forward by using it.  Measured on a machine of two cores: 9 to 14
// million empty requests a second, so that this many take about ten seconds.
constexpr std::uint32_t kMostSteps = 100'000'000;

// The ring with its positions, its memory and what is registered with it but for memory of the task.
Result<UniqueFd> make(const pb::FerryIoUringEntry& entry, RestoreContext& context);

// When the tasks have their memory and descriptors.
Result<void> register_buffers(const pb::FerryIoUringEntry& entry, RestoreContext& context);
Result<void> register_indices(const pb::FerryIoUringEntry& entry, RestoreContext& context);

}  // namespace ferry::state::io_uring
