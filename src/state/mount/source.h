// Where the mounts of an image come from.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/mount.pb.h"
#include "state/restore.h"

namespace ferry::state::mount {

// One filesystem, mounted where nothing is mounted on top of it.
struct Source {
  UniqueFd mount;
  std::string root = "/";  // the part of the filesystem that is mounted
  std::string archive_of;  // mount point that names it in messages
  bool read_only_later = false;
};

// A superblock made anew, by a call of ours: with the namespaces of the calling thread.
// `entry`: one of the mounts that show it.
Result<UniqueFd> make_superblock(const pb::MntEntry& entry);
// The same, made by the skeleton with its pid and cgroup namespaces.
Result<UniqueFd> make_superblock_in(RestoreTask& task, const pb::MntEntry& entry);

// The filesystem on a block device.  `entry`: one of the mounts that show it.
Result<UniqueFd> mount_device(const pb::MntEntry& entry, const std::string& device);

// The host path of an external mount.  Nullopt: the mount is not external.
// Errors: invalid, naming the mount point and the key for which the caller gave no path.
Result<std::optional<std::string>> external_path(const pb::MntEntry& entry, const RestoreOptions& options);

// Superblock options as they can be given to a new one.
struct Parameter {
  std::string key;
  std::optional<std::string> value;
};
std::vector<Parameter> parameters_of(const pb::MntEntry& entry);

}  // namespace ferry::state::mount
