#include "state/inet_socket/collect_tcp.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <chrono>

#include "base/log.h"
#include "image/proto/inventory.pb.h"
#include "state/nsids/nsids.h"
#include "state/socket/options.h"
#include "state/tcp/repair.h"
#include "state/tcp/states.h"
#include "state/tcp/tcp.h"
#include "sys/file.h"
#include "sys/net_namespace.h"
#include "sys/netlink.h"
#include "sys/sock_diag.h"

namespace ferry::state::inet_socket {
namespace {

Result<short> events(int fd, const std::string& subject) {
  pollfd p{fd, POLLRDHUP, 0};
  if (::poll(&p, 1, 0) < 0) {
    return sys_fail(fmt::format("poll({})", subject));
  }
  return p.revents;
}

// getpeername(2) does not tell whom a socket is still connecting to.
Result<void> collect_half_open(const FdProbe& probe, const Networks::Place& network, pb::InetSkEntry& entry) {
  FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(network.ns.get()));
  FERRY_TRY(auto netlink, sys::Netlink::open(NETLINK_SOCK_DIAG));
  FERRY_TRY(const auto found,
            sys::inet_diag(netlink, static_cast<std::uint8_t>(entry.family()), IPPROTO_TCP, 1U << tcp::kSynSent));
  for (const sys::InetDiag& socket : found) {
    if (socket.inode == entry.ino()) {
      entry.set_dst_port(socket.remote_port);
      entry.clear_dst_addr();
      for (int i = 0; i < (entry.family() == AF_INET ? 1 : 4); ++i) {
        entry.add_dst_addr(socket.remote[static_cast<std::size_t>(i)]);
      }
      return {};
    }
  }
  return fail(Kind::unsupported, "{}: it was about to connect a moment ago; try again", probe.subject());
}

}  // namespace

Result<void> TcpCollector::collect(const FdProbe& probe, DumpContext& context, const Networks::Place& network,
                                   pb::InetSkEntry& entry) {
  const std::string subject = probe.subject();
  FERRY_TRY(const tcp_info now, tcp::info(probe.ours, subject));
  entry.set_state(now.tcpi_state);
  if (now.tcpi_state == tcp::kListen) {
    entry.set_backlog(now.tcpi_sacked);  // of a listener: the limit of its accept queue (sock_diag(7), idiag_wqueue)
    listeners_.push_back({entry.id(), probe.ours, &network, subject});
    return {};
  }
  FERRY_TRY(const short happened, events(probe.ours, subject));
  if (!tcp::has_peer(now.tcpi_state)) {
    if ((happened & POLLRDHUP) != 0) {
      entry.set_shutdown(pb::SKSHUT_BOTH);  // it was connected once; a new socket shows no end of file
      int unread = 0;
      if ((happened & POLLERR) != 0 || (::ioctl(probe.ours, SIOCINQ, &unread) == 0 && unread > 0)) {
        return tcp::save_ended(probe.ours, subject, entry, (happened & POLLERR) != 0, context.set);
      }
    }
    return {};
  }
  if (context.options.tcp_close) {
    entry.set_state(tcp::kClose);
    return {};
  }
  if (now.tcpi_state == tcp::kSynSent) {
    FERRY_CHECK(collect_half_open(probe, network, entry));
  } else if ((happened & POLLRDHUP) != 0 && (now.tcpi_state == tcp::kEstablished || now.tcpi_state == tcp::kFinWait1 ||
                                             now.tcpi_state == tcp::kFinWait2)) {
    entry.set_shutdown(pb::SKSHUT_READ);  // by the program itself: the peer has sent no FIN
  }
  FERRY_TRY(const Endpoint source, Endpoint::from_image(entry.family(), entry.src_port(), entry.src_addr()));
  FERRY_TRY(const Endpoint peer, Endpoint::from_image(entry.family(), entry.dst_port(), entry.dst_addr()));
  if (entry.proto() != IPPROTO_TCP) {
    return fail(Kind::unsupported,
                "{}: an established MPTCP connection {} -> {} cannot be carried over; --tcp-close closes it", subject,
                source.text(), peer.text());
  }
  if (!context.options.tcp_established) {
    return fail(Kind::unsupported,
                "{}: an established TCP connection {} -> {}; --tcp-established keeps it, --tcp-close closes it",
                subject, source.text(), peer.text());
  }
  connections_.push_back({entry.id(), probe.ours, &network, subject});
  return {};
}

Result<void> TcpCollector::finish(DumpContext& context, const std::map<std::uint32_t, pb::InetSkEntry*>& entries) {
  if (listeners_.empty() && connections_.empty()) {
    return {};
  }
  if (context.options.tcp_established) {
    std::map<const Networks::Place*, std::vector<pb::InetSkEntry*>> connected;
    for (const Known& listener : listeners_) {
      connected[listener.network];
    }
    for (const Known& c : connections_) {
      connected[c.network].push_back(entries.at(c.id));
    }
    for (const auto& [network, connections] : connected) {
      FERRY_CHECK(lock(context, *network, connections));
    }
  }
  for (const Known& listener : listeners_) {
    FERRY_CHECK(check_listener(listener, context.options));
  }
  const auto begin = std::chrono::steady_clock::now();
  for (const Known& c : connections_) {
    FERRY_CHECK(tcp::save(c.ours, c.subject, *entries.at(c.id), context.set));
  }
  if (!connections_.empty()) {
    log::debug("  {} TCP connections: {} us", connections_.size(),
               std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin).count());
  }
  return {};
}

Result<void> TcpCollector::lock(DumpContext& context, const Networks::Place& network,
                                const std::vector<pb::InetSkEntry*>& connections) {
  FERRY_TRY(const auto* inventory, context.set.one<pb::InventoryEntry>({image::Type::inventory}));
  FERRY_TRY(const struct stat inode, sys::stat_fd(network.ns.get(), "network namespace"));
  network_lock::Request request;
  request.method = context.options.network_lock;
  request.id = inventory->dump_criu_run_id();
  // An external namespace is used by others as well, and goes on without this tree.
  request.whole = network.id != namespace_of(inventory->root_ids(), NsKind::net) &&
                  !external_key(context.options, "net", fmt::format("{}", inode.st_ino)).has_value();
  if (!request.whole) {
    for (const pb::InetSkEntry* entry : connections) {
      FERRY_TRY(auto connection, connection_of(*entry));
      request.connections.push_back(connection);
    }
    if (connections.empty()) {
      return {};
    }
  }
  const auto begin = std::chrono::steady_clock::now();
  FERRY_TRY(auto lock, network_lock::Lock::take(request, network.ns.get(), false));
  locks_.add(std::move(lock));
  log::debug("  network lock: {} us",
             std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin).count());
  return {};
}

Result<void> TcpCollector::check_listener(const Known& listener, const DumpOptions& options) {
  if (options.tcp_close || options.skip_in_flight) {
    return {};
  }
  FERRY_TRY(const tcp_info now, tcp::info(listener.ours, listener.subject));
  if (now.tcpi_unacked != 0) {
    return fail(Kind::unsupported,
                "{}: {} TCP connections wait for accept(2); try again, or leave them out with --skip-in-flight",
                listener.subject, now.tcpi_unacked);
  }
  return {};
}

Result<void> TcpCollector::before_end() {
  for (const Known& c : connections_) {
    FERRY_TRY(const tcp_info now, tcp::info(c.ours, c.subject));
    if (now.tcpi_state != tcp::kClose) {
      FERRY_TRY(tcp::Repair repair, tcp::Repair::begin(c.ours, c.subject));
      repair.leave_on();
    }
  }
  return locks_.keep();
}

Result<void> TcpCollector::before_going_on() { return locks_.release(); }

}  // namespace ferry::state::inet_socket
