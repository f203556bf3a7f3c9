// The mount system calls.  Source: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2),
// mount_setattr(2), pivot_root(2); all of them since Linux 5.12 at the latest.
#pragma once

#include <linux/mount.h>

#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

Result<UniqueFd> fs_open(const std::string& type);
Result<void> fs_set_string(int fs, const std::string& key, const std::string& value);
Result<void> fs_set_flag(int fs, const std::string& key);
// Makes the superblock.  The error carries the kernel's own explanation, where it gave one.
Result<void> fs_create(int fs);
// The mount of a created superblock, attached nowhere.
Result<UniqueFd> fs_mount(int fs, const std::string& type);
// Reconfigures the superblock behind an open mount to be read-only.
Result<void> make_superblock_read_only(int mount);

// A copy of the mount that contains `directory`/`path`, cut at that path, attached nowhere and with
// nothing mounted on it (OPEN_TREE_CLONE).  An empty path: the file that `directory` is open on.
Result<UniqueFd> clone_mount(int directory, const std::string& path);
// Attaches a mount that is attached nowhere on top of what `target` is open on.
Result<void> attach_mount(int mount, int target, const std::string& subject);
// mount_setattr(2) on the mount `mount` is open on.
Result<void> set_mount_attributes(int mount, std::uint64_t set, std::uint64_t clear, std::uint64_t propagation);
// `mount`, which has to be private, gets the peer group and master of `from` (MOVE_MOUNT_SET_GROUP, 5.15).
Result<void> copy_mount_group(int from, int mount);

}  // namespace ferry::sys
