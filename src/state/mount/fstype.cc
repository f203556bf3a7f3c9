#include "state/mount/fstype.h"

namespace ferry::state::mount {
namespace {

constexpr FsKind kKinds[] = {
    {"", pb::FSTYPE_UNSUPPORTED, Making::foreign},
    {"proc", pb::FSTYPE_PROC, Making::of_skeleton},
    {"sysfs", pb::FSTYPE_SYSFS, Making::of_namespace},
    {"devtmpfs", pb::FSTYPE_DEVTMPFS, Making::of_kernel},
    {"binfmt_misc", pb::FSTYPE_BINFMT_MISC, Making::of_skeleton},
    {"tmpfs", pb::FSTYPE_TMPFS, Making::fresh},
    {"devpts", pb::FSTYPE_DEVPTS, Making::fresh},
    {"simfs", pb::FSTYPE_SIMFS, Making::foreign},
    {"pstore", pb::FSTYPE_PSTORE, Making::of_kernel},
    {"securityfs", pb::FSTYPE_SECURITYFS, Making::of_kernel},
    {"fusectl", pb::FSTYPE_FUSECTL, Making::of_kernel},
    {"debugfs", pb::FSTYPE_DEBUGFS, Making::of_kernel},
    {"cgroup", pb::FSTYPE_CGROUP, Making::of_skeleton},
    {"aufs", pb::FSTYPE_AUFS, Making::foreign},
    {"mqueue", pb::FSTYPE_MQUEUE, Making::of_namespace},
    {"fuse", pb::FSTYPE_FUSE, Making::foreign},
    {"overlay", pb::FSTYPE_OVERLAYFS, Making::of_layers},
    {"autofs", pb::FSTYPE_AUTOFS, Making::foreign},
    {"tracefs", pb::FSTYPE_TRACEFS, Making::of_kernel},
    {"cgroup2", pb::FSTYPE_CGROUP2, Making::of_skeleton},
};

}  // namespace

const FsKind& fs_kind(std::string_view name) {
  for (const FsKind& kind : kKinds) {
    if (kind.name == name) {
      return kind;
    }
  }
  return kKinds[0];
}

const FsKind& fs_kind(pb::FsType type) {
  for (const FsKind& kind : kKinds) {
    if (kind.type == type) {
      return kind;
    }
  }
  return kKinds[0];
}

}  // namespace ferry::state::mount
