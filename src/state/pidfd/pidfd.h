// Descriptors of processes: pidfd_open(2).
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_pidfd_kind();

}  // namespace ferry::state
