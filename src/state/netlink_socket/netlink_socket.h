// Sockets to the kernel: netlink(7).
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_netlink_socket_kind();

}  // namespace ferry::state
