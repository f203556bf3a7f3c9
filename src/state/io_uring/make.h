// A ring made again, by the thread that it belongs to.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/file_kinds.pb.h"
#include "state/restore.h"

namespace ferry::state::io_uring {

// The positions of a ring can only be brought forward by using it.  Measured on a machine of two cores: 100 million
// empty requests take 7 s in a ring of 4096 entries and 14 s in one of 8.
constexpr std::uint32_t kStepsPerSecond = 10'000'000;
constexpr std::uint32_t kMostSteps = 10 * kStepsPerSecond;

// The ring with its positions, its memory and what is registered with it but for memory of the task.
Result<UniqueFd> make(const pb::FerryIoUringEntry& entry, RestoreContext& context);

// When the tasks have their memory and descriptors.
Result<void> register_buffers(const pb::FerryIoUringEntry& entry, RestoreContext& context);
Result<void> register_indices(const pb::FerryIoUringEntry& entry, RestoreContext& context);

}  // namespace ferry::state::io_uring
