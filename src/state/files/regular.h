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

}  // namespace ferry::state
