// Checkpoint: the content of the tmpfs of a tree.
#pragma once

#include <vector>

#include "base/error.h"
#include "state/dump.h"
#include "state/inside.h"
#include "state/mount/mountinfo.h"
#include "state/nsids/nsids.h"

namespace ferry::state::mount {

// The mounts of one mount namespace of the tree.  `order`: mount_order of `lines`.
struct View {
  TreeNamespace ns;
  Inside* inside = nullptr;
  const std::vector<Line>* lines = nullptr;
  const std::vector<std::size_t>* order = nullptr;
};

// Archives every tmpfs that is shown as a whole and is not external.  The entries of the mounts are in the set.
Result<void> save_tmpfs(DumpContext& context, const std::vector<View>& views);

// Which mount a path leads to; an empty path: what `directory` is open on.
Result<std::uint64_t> visible_mount_id(int directory, const std::string& path);

}  // namespace ferry::state::mount
