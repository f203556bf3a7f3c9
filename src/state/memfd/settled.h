// A memory file that exists and is filled before the tree is restored, as a move does it.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/file_kinds.pb.h"

namespace ferry::state::memfd {

// Huge pages cannot be written to but by a mapping, and those of an empty file are nobody's.
bool can_settle(const pb::MemfdInodeEntry& inode);
// A new one, without content and without seals.
Result<UniqueFd> create_empty(const pb::MemfdInodeEntry& inode);
// The key under which it is handed to the restore, among the descriptors to inherit.
std::string settled_key(std::uint32_t shmid);
// What has changed of it since, but for the content; and its seals, as create() gives them.
// Errors: corrupt, if it is no file of that kind and name.
Result<void> settle(const pb::MemfdInodeEntry& inode, int fd);

}  // namespace ferry::state::memfd
