// Terminals: pairs of pseudoterminals in the tree, slaves whose master is outside (a container's
// console, the terminal that a shell job was started from), and /dev/tty.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_tty_kind();

// Key of an inherited descriptor: the master of pseudoterminal `index`, made and handed out earlier.
std::string prepared_master_key(std::uint32_t index);

}  // namespace ferry::state
