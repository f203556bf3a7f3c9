// Descriptors of namespaces: namespaces(7).
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_ns_file_kind();

}  // namespace ferry::state
