// What a filesystem type means for a mount that has to be made again.
#pragma once

#include <string_view>

#include "image/proto/mount.pb.h"

namespace ferry::state::mount {

enum class Making {
  foreign,       // only as the root, as an external mount, or as a bind of something that is there anyway
  fresh,         // a new superblock with the recorded options: tmpfs (content comes from its archive), devpts
  of_namespace,  // a new superblock that shows a namespace of whoever mounts it: sysfs, mqueue
  of_skeleton,   // the same, but a namespace that only the skeleton is in: proc, cgroup and cgroup2, binfmt_misc
  of_layers,     // overlayfs over directories of the tree
  of_kernel,     // one superblock for the whole machine: debugfs
};

struct FsKind {
  std::string_view name;
  pb::FsType type;
  Making making;
};

// By the name in mountinfo; types that the images do not know are FSTYPE_UNSUPPORTED and foreign.
const FsKind& fs_kind(std::string_view name);
const FsKind& fs_kind(pb::FsType type);

}  // namespace ferry::state::mount
