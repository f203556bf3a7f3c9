// Packet sockets, packet(7), with their rings (rings.h), without packets that wait in their queue.
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_packet_socket_kind();

}  // namespace ferry::state
