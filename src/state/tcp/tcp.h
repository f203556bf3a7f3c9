// TCP connections with a peer: what TCP_REPAIR tells of them and takes.
//
// The peer must not notice that there is another socket now: sequence numbers, windows, scaling, timestamps
// and the bytes of both queues go over, and what was not acknowledged is sent again at the end.  While any of
// this happens packets of the connection are to be kept away (state/network_lock).
#pragma once

#include <map>
#include <string>

#include "base/error.h"
#include "image/proto/sockets.pb.h"
#include "image/set.h"
#include "state/inet_socket/inet_socket.h"
#include "state/inet_socket/inject.h"
#include "state/inside.h"

namespace ferry::state::tcp {

// Whether a socket in this state of tcp(7) has a peer.
bool has_peer(std::uint32_t state);

// Adds the connection's tcp-stream image and sets entry.state.  The socket is as before afterwards.
// Errors: unsupported, naming what a new socket cannot be given.
Result<void> save(int fd, const std::string& subject, pb::InetSkEntry& entry, image::Set& set);

// A connection that has ended while there is still something to be read from its socket, an error (`reset`)
// or the last bytes.
Result<void> save_ended(int fd, const std::string& subject, const pb::InetSkEntry& entry, bool reset, image::Set& set);

struct Peers {
  inet_socket::Endpoint local, remote;  // with their scopes
};

class Restorer {
 public:
  // When the socket is new, in the order in which they stand; from begin() on it is in repair mode, and
  // whatever fails, nobody hears of it.
  Result<void> begin(int fd, const pb::InetSkEntry& entry, const std::string& subject);
  // Bound to its address: it gets its peer, its past and what it has received.
  Result<void> connect(int fd, const pb::InetSkEntry& entry, const Peers& peers, const image::Set& set, Inside& inside);
  // What save_ended() has kept; the socket is new, or bound.
  Result<void> end(int fd, const pb::InetSkEntry& entry, const image::Set& set, Inside& inside);
  // The network is open again: it sends what is to be sent.  To be called before the program can see it.
  Result<void> resume(int fd, const pb::InetSkEntry& entry, Inside& inside);

 private:
  struct Pending {
    std::string subject;
    Peers peers;
    std::string again, unsent;  // bytes sent and not acknowledged; bytes never sent
    bool syn = false;           // begins to connect
    bool fin = false;           // closes its side
    bool peer_fin = false;      // and then hears that the peer has, too
  };
  Result<void> connect_again(int fd, const Pending& pending);

  inet_socket::Injector injector_;
  std::map<std::uint32_t, Pending> pending_;  // by the entry's id
};

}  // namespace ferry::state::tcp
