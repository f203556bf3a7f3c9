// Packet sockets, packet(7), without packets that wait in them.
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_packet_socket_kind();

}  // namespace ferry::state
