// Unix sockets: unix(7).  Connected pairs, listeners with connections that wait, names (paths, relative
// paths, abstract), queued data with descriptors in flight.
#pragma once

#include <memory>

#include "state/file_kind.h"

namespace ferry::state {

std::unique_ptr<FileKind> make_unix_socket_kind();

namespace unix_socket {

// tcp(7)'s numbers, which the kernel uses for Unix sockets as well.
inline constexpr std::uint32_t kEstablished = 1, kClosed = 7, kListen = 10;
// Bits of UnixSkEntry.uflags.
inline constexpr std::uint32_t kExternal = 1;
inline constexpr std::uint32_t kCaller = 2;  // by it the tree asked for its checkpoint; its other end is criu

// The two directions; the kind hands over to them.
class Collector;
class Restorer;

}  // namespace unix_socket
}  // namespace ferry::state
