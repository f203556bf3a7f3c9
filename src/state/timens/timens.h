// CLOCK_MONOTONIC and CLOCK_BOOTTIME as the tree saw them: timens-NS.img.  Source: time_namespaces(7).
//
// The readings are always kept, with the boot they belong to.  A tree that comes from another boot, or that
// had a time namespace, gets one whose clocks go on from there; otherwise the host's clocks are right.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "image/proto/ns.pb.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::timens {

struct Offsets {
  std::int64_t monotonic_ns = 0, boottime_ns = 0;
};
// Text of /proc/PID/timens_offsets: against the first time namespace.
Result<Offsets> parse_offsets(std::string_view text);

Result<void> collect(DumpContext& context);

// To be called while the root skeleton is single-threaded, has no children and still our mounts: a process
// with two threads cannot change its time namespace, and children inherit it.
Result<void> restore(RestoreContext& context);

// What the tree's clocks have to differ from the first time namespace's, for them to read `entry` at `now`.
Offsets offsets_for(const pb::TimensEntry& entry, const Offsets& now_ns);

}  // namespace ferry::state::timens
