// Signals accepted through a descriptor: signalfd(2).
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_signalfd_kind();

}  // namespace ferry::state
