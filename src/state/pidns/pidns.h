// The pid namespace of the tree.  It has no state beyond the numbers of its tasks; only one that the
// caller keeps (external) is named in an image of its own, pidns-NS.img.  Source: pid_namespaces(7).
#pragma once

#include <optional>

#include "base/error.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::pidns {

// Errors: unsupported, if the root of the tree is not the first process of its own pid namespace and the
// namespace was not declared external (--external pid[INODE]:KEY).
Result<void> collect(DumpContext& context);

// The caller's namespace that the root skeleton has to be made in, as a descriptor that the caller owns
// (--inherit-fd fd[N]:KEY); nullopt: a new one, or ours.
// Errors: invalid, if no descriptor was given for the key.
Result<std::optional<int>> external_fd(const image::Set& set, const RestoreOptions& options);

}  // namespace ferry::state::pidns
