// CLOCK_MONOTONIC and CLOCK_BOOTTIME as the tree saw them: timens-NS.img, one for each time namespace of the tree.
// Source: time_namespaces(7).
//
// The readings are always kept, with the boot they belong to.  A tree that comes from another boot or another
// host's clocks, or that had a time namespace, gets one whose clocks go on from there; otherwise the host's clocks
// are right.  What its namespaces' clocks differed by they go on differing by.
#pragma once

#include <optional>

#include "base/error.h"
#include "image/proto/ns.pb.h"
#include "image/set.h"
#include "state/dump.h"
#include "state/restore.h"
#include "state/timens/clocks.h"

namespace ferry::state::timens {

Result<void> collect(DumpContext& context);

// To be called while the root skeleton is single-threaded, has no children and still our mounts: a process
// with two threads cannot change its time namespace, and children inherit it.
Result<void> restore(RestoreContext& context);

// Puts the tasks into the other time namespaces of the tree, while each is still single-threaded.
Result<void> enter(RestoreContext& context);

// For a tree whose root got its namespace before the images were made: until which reading of our own clocks it may
// not run, lest its clocks went back.
Result<Clocks> not_before(RestoreContext& context);
Result<void> wait_until(const Clocks& here);

// --- for moves
// How far the root's clocks were ahead of the first time namespace.  Errors: corrupt.
Result<Clocks> root_offsets(const image::Set& set);
// Whoever restores this set lets the root's clocks go on with that distance, without a pause.
Result<void> go_on(image::Set& set, const Clocks& offsets);

// --- the rules, apart from any process
// With which distance to the first time namespace the clocks of `entry` have to go on on this host, at `now` by the
// first time namespace; none: with those that we have ourselves.  `is_new`: the tree had a namespace of its own.
std::optional<Clocks> wanted(const pb::TimensEntry& entry, bool is_new, const Host& host, const Clocks& now);

// Both as file names and images number them: the dumper's own is 0.
const pb::TimensEntry* entry_of(const image::Set& set, std::uint32_t ns, std::uint32_t dumper);
Clocks readings_of(const pb::TimensEntry& entry);

}  // namespace ferry::state::timens
