// Datagrams that a UDP socket has received and its program has not read yet, with their senders.
//
// They come back as packets from their senders (inject.h).  What a network could lose anyway is left out with
// a warning, where it cannot be given back: sent to a group, or to a raw or ping socket.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "image/proto/sockets.pb.h"
#include "image/set.h"
#include "state/inet_socket/inet_socket.h"
#include "state/inet_socket/inject.h"

namespace ferry::state::inet_socket {

// Adds what waits in the socket to sk-queues.  Reads without taking.
// Errors: unsupported for a datagram that is written in parts (UDP_CORK, MSG_MORE) and not complete.
Result<void> save_datagrams(int fd, const std::string& subject, const pb::InetSkEntry& entry, image::Set& set);

// To be called when the socket is bound and not connected yet.
Result<void> restore_datagrams(int fd, const std::string& subject, const pb::InetSkEntry& entry, const image::Set& set,
                               Injector& injector, Inside& inside);

}  // namespace ferry::state::inet_socket
