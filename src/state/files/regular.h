// Files that have a path: regular files, directories, devices, files of procfs.
//
// A deleted file travels in the images (a "ghost"); any other has to be at its path, with its size and
// mode, on the restoring side.
#pragma once

#include <memory>
#include <string>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_regular_file_kind();

namespace regular {

// Fills an entry for a file that `ours` refers to (O_PATH will do).  `link`: its path as procfs shows it.
// A deleted file is added to the set as a ghost.  Errors: unsupported, for what has no way back.
Result<void> describe(DumpContext& context, DumpTask& task, int ours, const struct stat& stat, std::string link,
                      const std::string& subject, pb::RegFileEntry& out);

}  // namespace regular
}  // namespace ferry::state
