// Pairs of pseudoterminals: pty(7).
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::state::tty {

// Documentation/admin-guide/devices.txt
bool is_slave_device(dev_t rdev);  // 136:0 … 143:*
std::uint32_t slave_index(dev_t rdev);

// The master with that index in the devpts that `ptmx` (a path, as this thread sees it) leads to.
// The kernel gives the lowest free index, so lower ones are opened as well, for a moment.
// Errors: os, if the index is in use elsewhere.
Result<UniqueFd> open_master(const std::string& ptmx, std::uint32_t index);

// A further description of the slave.  Source: ioctl_tty(2), TIOCGPTPEER (Linux 4.13).
Result<UniqueFd> open_slave(int master, int flags);

// What can be read from `fd` at once, taken out; `fd` is a terminal.
Result<std::string> drain(int fd, std::string_view subject);

}  // namespace ferry::state::tty
