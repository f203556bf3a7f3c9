// Rings that a packet socket shares with the kernel: PACKET_RX_RING and PACKET_TX_RING of packet(7).
//
// A program and the kernel go round a ring each for itself, so a new ring has to be taken to the frame where the
// kernel was in the old one.  Only packets do that: on restore the socket gets and sends as many over the loopback
// interface as it takes, of a type that nobody listens to, before it has its own filter and interface; that interface
// counts them.  Then the ring gets the content that the program may look at, packets that it has not read among it.
#pragma once

#include <string>

#include "base/error.h"
#include "image/proto/sockets.pb.h"
#include "state/inside.h"
#include "sys/packet_look.h"

namespace ferry::state::packet_socket {

// `entry` has version and sizes already, and gets position and content.  Errors: unsupported.
Result<void> collect_rings(int socket, const std::string& subject, const sys::PacketLook& look,
                           pb::PacketSockEntry& entry);

// Makes the rings of a socket that receives nothing yet and has no filter; what else has to be set before there are
// rings (version, room, headers) is.  `inside`: its network.  Leaves it bound to the loopback interface if anything
// was received.
Result<void> restore_rings(int socket, const std::string& subject, Inside& inside, const pb::PacketSockEntry& entry);

}  // namespace ferry::state::packet_socket
