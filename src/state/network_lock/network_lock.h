// Silence around connections whose sockets cannot answer: from before they are looked at until they are let
// go again, here or, after a restore, as others.
//
// Without it the kernel answers for a socket that is not there (any more, or yet), and its answer is a reset.
// As CRIU does it, so that either finishes what the other began: --network-lock nftables makes the table
// "inet CRIU-ID" (ID: the set's dump_criu_run_id), iptables rules in INPUT and OUTPUT.  A tree that has a
// network namespace of its own has all of it locked; in a shared one exactly its connections are.  Packets
// that carry the mark 0xC114 pass.
//
// A table of a dump that is not finished belongs to a socket of its process (NFT_TABLE_F_OWNER): if criu is
// killed the kernel takes it away.  keep() makes it a table of nobody's, which stays until a restore removes
// it (or `nft delete table inet CRIU-ID`, if there is to be none).  iptables knows nothing of the kind.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "state/options.h"

namespace ferry::state::network_lock {

constexpr std::uint32_t kOwnMark = 0xC114;  // SO_MARK of what may pass

struct Connection {
  bool ipv6 = false;
  std::array<std::uint8_t, 16> local{}, remote{};  // the first 4 bytes for IPv4
  std::uint16_t local_port = 0, remote_port = 0;
};

struct Request {
  NetworkLock method = NetworkLock::nftables;
  std::string id;                       // of the set, for the name
  bool whole = false;                   // all packets of the namespace
  std::vector<Connection> connections;  // otherwise
};

class Lock {
 public:
  Lock();
  Lock(Lock&&) noexcept;
  Lock& operator=(Lock&&) noexcept;
  ~Lock();  // releases, unless kept

  // `ns`: the network namespace, an open /proc/PID/ns/net; -1: our own.
  // `lasting`: it outlives us from the beginning, as the lock of a restore does, which takes over what
  // the dump has left.
  static Result<Lock> take(const Request& request, int ns, bool lasting);
  [[nodiscard]] explicit operator bool() const { return state_ != nullptr; }
  Result<void> keep();
  // Also removes what the dump of this set has left behind.
  Result<void> release();
  // Nothing is undone on destruction.
  void leave();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// One for each network namespace that has connections.
class Locks {
 public:
  void add(Lock lock) { locks_.push_back(std::move(lock)); }
  Result<void> keep();
  // All of them, whatever happens; the first error.
  Result<void> release();
  void leave();

 private:
  std::vector<Lock> locks_;
};

}  // namespace ferry::state::network_lock
