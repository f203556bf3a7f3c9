// The content of a file without a name: kept in the images, and made again.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <string>

#include "image/proto/remap.pb.h"
#include "state/dump.h"
#include "state/restore.h"

namespace ferry::state::ghost {

// Adds the file behind `ours` (any type; O_PATH will do) to the set as ghost-file-NUMBER.
// `temporary`: it was made by O_TMPFILE.
// Errors: unsupported if it holds more than options.ghost_limit bytes.
Result<void> save(DumpContext& context, int ours, const struct stat& stat, std::uint32_t number, bool temporary,
                  const std::string& subject);

// Makes the file of that ghost at `path`, empty and with no rights for others.  Kind::os with EEXIST if the
// name is taken.  To be run with the tree's root.
Result<void> make(const pb::GhostFileEntry& entry, const std::string& path);

// Content, owner, mode and times.  `file`: O_PATH descriptor of what make() made, or of an unnamed file.
Result<void> fill(const image::Set& set, std::uint32_t number, int file, const std::string& subject);

}  // namespace ferry::state::ghost
