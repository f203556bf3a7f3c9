// Packets of the RPC socket: SOCK_SEQPACKET, one protobuf message each, no length before it.
#pragma once

#include <optional>
#include <string>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::criu {

class RpcChannel {
 public:
  // The socket stays the caller's.
  explicit RpcChannel(int fd) : fd_(fd) {}

  // Whose descriptor numbers the requests hold.  Errors: os, if it is no connected Unix socket.
  Result<HostPid> peer() const;

  // Inode of the peer's end of the socket.  Errors: gone, if it is closed.
  [[nodiscard]] Result<std::uint32_t> peer_inode() const;

  // One packet, whatever its size; nothing at the end of the connection.
  Result<std::optional<std::string>> receive() const;

  // `passed`, if not -1, goes along as SCM_RIGHTS.  Errors: gone, if the peer closed.
  Result<void> send(const std::string& packet, int passed = -1) const;

  // The peer is gone, and with it whoever asked for what we are doing.
  bool hung_up() const;

 private:
  int fd_;
};

}  // namespace ferry::criu
