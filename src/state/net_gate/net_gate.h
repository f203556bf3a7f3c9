// The door of a container's network namespace while its tree moves: shut wholly on the side where the tree is
// not (yet, or any more), and on the side where it is frozen with the packets for it waiting in front.
//
// Everything here works on a namespace by a descriptor of it (/proc/PID/ns/net), from any thread.  Packets with
// the mark network_lock::kOwnMark pass, so that sockets can be repaired behind a shut door.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "state/network_lock/network_lock.h"
#include "sys/nftables.h"
#include "sys/packet_queue.h"

namespace ferry::state::net_gate {

// Nothing comes in, nothing goes out: IPv4, IPv6 and ARP.  To be called before an interface moves in; then not
// one frame with its address leaves.  Lasts until open() or the end of the namespace, whoever ends before.
// May be called again.
Result<void> shut(int ns);
// Ahead of time for what has to take none: the kernel needs milliseconds to hang in a table or to take it down, and
// microseconds to change its rules.
//
// To destroy it takes milliseconds, because the kernel then waits until nobody uses the old rules any more
// (nft_rcv_nl_event in net/netfilter/nf_tables_api.c): keep it until nothing is frozen.  The tables stay until open().
class Gate {
 public:
  Gate() = default;
  // Open or shut as it was before.
  static Result<Gate> hang(int ns);
  [[nodiscard]] explicit operator bool() const { return static_cast<bool>(nft_); }
  Result<void> shut();
  // All but what shut_device() holds back.
  Result<void> let_pass();

 private:
  sys::Nftables nft_;
};
// The same for what programs send by packet sockets, which pass by those tables, once the interface is there
// (Linux 5.16: netdev egress).  Errors: unsupported on older kernels.
Result<void> shut_device(int ns, std::string_view interface);
// Undoes both; nothing if it was open.
Result<void> open(int ns);

// What arrives while the tree is frozen waits, neither answered nor lost.
// If this process ends, what waits is dropped and the door is open, as if a network had lost some packets.  The
// kernel also drops what waits when a table with chains is removed from the namespace (nf_queue_nf_hook_drop in
// net/netfilter/core.c): a dump meanwhile has to go without a lock of its own (NetworkLock::skip).
class Withheld {
 public:
  // TCP segments that open a connection wait from here on: shortly before the freeze, so that accept queues run
  // empty.  Takes milliseconds, as shut() does.
  // Errors: os if a program in the namespace has packet queue 0 for itself.
  static Result<Withheld> begin(int ns);
  // All that comes from outside or over the namespace's own loopback waits, at once.
  Result<void> widen();
  // Adds what has arrived since to packets().
  Result<void> collect();
  [[nodiscard]] const std::vector<std::string>& packets() const { return packets_; }  // in order; whole IP packets
  // The tree goes on here: all of it comes in, in order, and the door is open.
  Result<void> let_in();
  // The tree goes on elsewhere, where packets() were delivered: they are dropped here.  To be called behind a
  // shut door, or what comes next finds whatever is left of the tree.
  Result<void> discard();

 private:
  Result<void> set_rules();
  Result<void> remove();
  sys::Nftables nft_;  // owns the table
  sys::NftRule::QueueBy by_ = sys::NftRule::QueueBy::expression;
  sys::PacketQueue queue_;
  std::vector<std::string> packets_;
};

// Gives packets that were withheld elsewhere to this namespace's stack, as if they had just arrived.  Those
// that are not for one of its addresses are left out; the value is the number of the others.
Result<std::size_t> deliver(int ns, const std::vector<std::string>& packets);

}  // namespace ferry::state::net_gate
