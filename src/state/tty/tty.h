// Terminals: pairs of pseudoterminals in the tree, slaves whose master is outside (a container's
// console, the terminal that a shell job was started from), and /dev/tty.
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_tty_kind();

}  // namespace ferry::state
