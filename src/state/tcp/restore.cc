#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "base/log.h"
#include "state/socket/options.h"
#include "state/tcp/repair.h"
#include "state/tcp/states.h"
#include "state/tcp/tcp.h"
#include "tracee/deadline.h"

namespace ferry::state::tcp {
namespace {

using inet_socket::Endpoint;
using inet_socket::on_the_wire;
using inet_socket::Segment;
using socket::get_int;
using socket::set_int;

constexpr int kBufLock = 72;                      // SO_BUF_LOCK, Linux 5.15
constexpr std::chrono::seconds kDeliveryTime{2};  // of a packet through lo, which takes microseconds
// Numbers of options in a TCP header (RFC 9293, RFC 7323, RFC 2018), which TCP_REPAIR_OPTIONS takes.
constexpr std::uint32_t kMss = 2, kWindowScale = 3, kSackPermitted = 4, kTimestamp = 8;

// Room for what a queue held, and the sizes as they were afterwards.  What a queue holds counts with its
// overhead, which here may be more than it was.
class Room {
 public:
  static Result<Room> make(int fd, bool receive, std::size_t bytes) {
    const int read = receive ? SO_RCVBUF : SO_SNDBUF, force = receive ? SO_RCVBUFFORCE : SO_SNDBUFFORCE;
    FERRY_TRY(const int before, get_int(fd, SOL_SOCKET, read, "buffer size"));
    const std::size_t wanted = 2 * bytes + 65536;
    if (static_cast<std::size_t>(before) / 2 >= wanted) {
      return Room(-1, force, before, 0);
    }
    const auto lock = get_int(fd, SOL_SOCKET, kBufLock, "SO_BUF_LOCK");
    const auto size = static_cast<int>(std::min<std::size_t>(wanted, 0x3fffffff));
    FERRY_CHECK(set_int(fd, SOL_SOCKET, force, size, "SO_RCVBUFFORCE or SO_SNDBUFFORCE"));
    return Room(fd, force, before, lock.value_or(0));
  }
  Room(Room&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), force_(other.force_), before_(other.before_), lock_(other.lock_) {}
  Room& operator=(Room&&) = delete;
  ~Room() {
    if (fd_ >= 0) {
      const int half = before_ / 2;  // the kernel doubles it (socket(7), SO_RCVBUF)
      (void)::setsockopt(fd_, SOL_SOCKET, force_, &half, sizeof half);
      (void)::setsockopt(fd_, SOL_SOCKET, kBufLock, &lock_, sizeof lock_);
    }
  }

 private:
  Room(int fd, int force, int before, int lock) : fd_(fd), force_(force), before_(before), lock_(lock) {}
  int fd_, force_, before_, lock_;
};

Result<void> put(int fd, std::string_view bytes, std::string_view which, const std::string& subject) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0 && (errno == EPIPE || errno == ECONNRESET || errno == ETIMEDOUT)) {
      log::warning("{}: it ended while it was restored, which the program will be told", subject);
      return {};
    }
    if (n < 0) {
      return sys_fail(fmt::format("send({}, {} bytes more into the {} queue)", subject, bytes.size(), which));
    }
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

Result<void> set_options(int fd, const pb::TcpStreamEntry& stream, const std::string& subject) {
  std::vector<tcp_repair_opt> options{{kMss, stream.mss_clamp()}};
  if ((stream.opt_mask() & TCPI_OPT_WSCALE) != 0) {
    options.push_back({kWindowScale, stream.snd_wscale() | stream.rcv_wscale() << 16});
  }
  if ((stream.opt_mask() & TCPI_OPT_SACK) != 0) {
    options.push_back({kSackPermitted, 0});
  }
  if ((stream.opt_mask() & TCPI_OPT_TIMESTAMPS) != 0) {
    options.push_back({kTimestamp, 0});
  }
  if (::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options.data(),
                   static_cast<socklen_t>(options.size() * sizeof options[0])) != 0) {
    return sys_fail(fmt::format("setsockopt({}, TCP_REPAIR_OPTIONS)", subject));
  }
  if (stream.has_timestamp()) {
    return set_int(fd, IPPROTO_TCP, TCP_TIMESTAMP, static_cast<int>(stream.timestamp()), "TCP_TIMESTAMP")
        .during("{}", subject);
  }
  return {};
}

// The kernel checks the numbers against what the socket has received, where the FIN may be missing yet.
Result<void> restore_window(int fd, const pb::TcpStreamEntry& stream, const std::string& subject) {
  if (!stream.has_rcv_wup() || !stream.has_snd_wnd()) {
    return {};
  }
  FERRY_CHECK(choose_queue(fd, Queue::receive, subject));
  FERRY_TRY(const std::uint32_t received, sequence(fd, subject));
  Window w{stream.snd_wl1(), stream.snd_wnd(), stream.max_window(), stream.rcv_wnd(), stream.rcv_wup()};
  if (const auto ahead = static_cast<std::int32_t>(w.rcv_wup - received); ahead > 0) {
    w.rcv_wup = received;
    w.rcv_wnd += static_cast<std::uint32_t>(ahead);  // the right edge is what the peer was promised
  }
  return set_window(fd, w, subject);
}

// Waits until a packet that we made has had its effect: it is handled by the time it is sent, or very soon.
Result<void> await_state(int fd, std::uint32_t wanted, const std::string& subject) {
  const tracee::Deadline deadline(kDeliveryTime);
  for (;;) {
    FERRY_TRY(const tcp_info now, info(fd, subject));
    if (now.tcpi_state == wanted) {
      return {};
    }
    if (deadline.passed()) {
      return fail(Kind::os,
                  "{}: {} s after a packet that ends a direction it is still in state {} and not in {}; is lo up?",
                  subject, kDeliveryTime.count(), now.tcpi_state, wanted);
    }
    std::this_thread::yield();
  }
}

// A packet of the peer, as its next.  Without timestamps: which was its last is not to be known, and the
// kernel takes segments that have none (tcp_validate_incoming in net/ipv4/tcp_input.c).
struct FromPeer {
  int fd;
  const std::string& subject;
  const Peers& peers;
  inet_socket::Injector& injector;
  Inside& inside;

  Result<void> send(Segment segment, std::uint32_t window, std::uint32_t scale) const {
    segment.window = static_cast<std::uint16_t>(std::min<std::uint32_t>(window >> scale, 0xffff));
    const Endpoint local = on_the_wire(peers.local), remote = on_the_wire(peers.remote);
    FERRY_TRY(const std::string packet, tcp_packet(remote, local, segment));
    return injector.send(packet, local, inside).during("{}", subject);
  }
};

// The urgent byte comes as a segment of its own, the rest of the queue behind it as before.
Result<void> receive_urgent(const FromPeer& peer, const pb::TcpStreamEntry& stream, std::string_view byte,
                            std::uint32_t acknowledged) {
  FERRY_CHECK(choose_queue(peer.fd, Queue::receive, peer.subject));
  FERRY_TRY(const std::uint32_t before, sequence(peer.fd, peer.subject));
  Segment segment;
  segment.sequence = before;
  segment.acknowledged = acknowledged;
  segment.flags = inet_socket::kAck | inet_socket::kUrg;
  segment.urgent = 1;
  segment.payload = byte;
  FERRY_CHECK(peer.send(segment, stream.snd_wnd(), stream.snd_wscale()));
  const tracee::Deadline deadline(kDeliveryTime);
  for (;;) {
    FERRY_TRY(const std::uint32_t now, sequence(peer.fd, peer.subject));
    if (now == before + 1) {
      return {};
    }
    if (deadline.passed()) {
      return fail(Kind::os, "{}: {} s after its urgent byte was sent it has not arrived; is lo up?", peer.subject,
                  kDeliveryTime.count());
    }
    std::this_thread::yield();
  }
}

// The receive queue, in repair mode.
Result<void> fill_received(const FromPeer& peer, const pb::TcpStreamEntry& stream, std::string_view bytes,
                           std::uint32_t acknowledged) {
  FERRY_TRY(const Room room, Room::make(peer.fd, true, bytes.size()));
  FERRY_CHECK(choose_queue(peer.fd, Queue::receive, peer.subject));
  const std::size_t mark = stream.has_ferry_urgent_at() ? stream.ferry_urgent_at() : bytes.size();
  if (mark < bytes.size()) {
    FERRY_CHECK(put(peer.fd, bytes.substr(0, mark), "receive", peer.subject));
    FERRY_CHECK(receive_urgent(peer, stream, bytes.substr(mark, 1), acknowledged));
    bytes.remove_prefix(mark + 1);
  }
  return put(peer.fd, bytes, "receive", peer.subject);
}

}  // namespace

Result<void> Restorer::begin(int fd, const pb::InetSkEntry& entry, const std::string& subject) {
  if (entry.state() == kSynSent) {
    return {};
  }
  FERRY_TRY(Repair repair, Repair::begin(fd, subject));
  repair.leave_on();
  return {};
}

Result<void> Restorer::connect(int fd, const pb::InetSkEntry& entry, const Peers& peers, const image::Set& set,
                               Inside& inside) {
  const image::Name name{image::Type::tcp_stream, entry.ino()};
  FERRY_TRY(const auto* stream_entry, set.one<pb::TcpStreamEntry>(name));
  const pb::TcpStreamEntry& stream = *stream_entry;
  const std::string_view queues = set.entries(name).front().extra;
  Pending& pending = pending_[entry.id()];
  pending.subject = fmt::format("TCP connection {} -> {}", peers.local.text(), peers.remote.text());
  pending.peers = peers;
  const std::string& subject = pending.subject;
  if (queues.size() != std::size_t{stream.inq_len()} + stream.outq_len() || stream.unsq_len() > stream.outq_len() ||
      stream.snd_wscale() > 14 || stream.rcv_wscale() > 14) {
    return fail(Kind::corrupt, "{} does not hold together: {} bytes for queues of {} and {}", image::file_name(name),
                queues.size(), stream.inq_len(), stream.outq_len());
  }
  const std::uint32_t state = entry.state();
  if (state == kSynSent) {
    pending.syn = true;
    return {};
  }
  const std::string_view received = queues.substr(0, stream.inq_len());
  const std::string_view sent = queues.substr(stream.inq_len(), stream.outq_len() - stream.unsq_len());
  pending.unsent = queues.substr(stream.inq_len() + sent.size());

  const std::uint32_t first_to_send = stream.outq_seq() - stream.outq_len() - (fin_sent(state) ? 1 : 0);
  FERRY_CHECK(choose_queue(fd, Queue::receive, subject));
  FERRY_CHECK(set_sequence(fd, stream.inq_seq() - stream.inq_len() - (fin_received(state) ? 1 : 0), subject));
  FERRY_CHECK(choose_queue(fd, Queue::send, subject));
  FERRY_CHECK(set_sequence(fd, first_to_send, subject));
  const sockaddr_storage remote = peers.remote.to_sockaddr();
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&remote), peers.remote.size()) != 0) {
    return sys_fail(fmt::format("connect({}, in repair mode)", subject));
  }
  FERRY_CHECK(set_options(fd, stream, subject));
  const FromPeer peer{fd, subject, peers, injector_, inside};
  FERRY_CHECK(fill_received(peer, stream, received, first_to_send));

  // What was sent and not acknowledged may be lost, and the first time-out of a new socket is a second or
  // more: it is sent again at once, as if it never had been.  Not if that took several windows: then the
  // peer's answer could be to something beyond what we have sent again, which the kernel does not take.
  FERRY_TRY(const tcp_info now, info(fd, subject));
  const std::uint64_t burst =
      std::min<std::uint64_t>(std::uint64_t{now.tcpi_snd_cwnd} * now.tcpi_snd_mss, stream.snd_wnd());
  FERRY_TRY(const Room room, Room::make(fd, false, stream.outq_len()));
  if (sent.size() <= burst) {
    pending.again = sent;
  } else {
    FERRY_CHECK(choose_queue(fd, Queue::send, subject));
    FERRY_CHECK(put(fd, sent, "send", subject));
  }
  FERRY_CHECK(restore_window(fd, stream, subject));

  Segment segment;
  FERRY_CHECK(choose_queue(fd, Queue::receive, subject));
  FERRY_TRY(segment.sequence, sequence(fd, subject));
  segment.acknowledged = first_to_send;
  if (state == kCloseWait || state == kLastAck) {
    segment.flags = inet_socket::kAck | inet_socket::kFin;
    FERRY_CHECK(peer.send(segment, stream.snd_wnd(), stream.snd_wscale()));
    FERRY_CHECK(await_state(fd, kCloseWait, subject));
  }
  pending.fin = fin_sent(state);
  if (state == kFinWait2 || (pending.fin && pending.again.empty() && !sent.empty() && pending.unsent.empty())) {
    // The FIN counts as sent, since the peer may have it.
    FERRY_CHECK(choose_queue(fd, Queue::send, subject));
    if (::shutdown(fd, SHUT_WR) != 0) {
      return sys_fail(fmt::format("shutdown({}, in repair mode)", subject));
    }
    pending.fin = false;
  }
  if (state == kFinWait2) {
    segment.flags = inet_socket::kAck;
    segment.acknowledged = first_to_send + 1;
    FERRY_CHECK(peer.send(segment, stream.snd_wnd(), stream.snd_wscale()));
    FERRY_CHECK(await_state(fd, kFinWait2, subject));
  }
  pending.peer_fin = state == kClosing;
  return choose_queue(fd, Queue::none, subject);
}

// Nobody knows any more who its peer was; whoever it was, a reset of his ends it, and leaves what was received.
Result<void> Restorer::end(int fd, const pb::InetSkEntry& entry, const image::Set& set, Inside& inside) {
  const image::Name name{image::Type::tcp_stream, entry.ino()};
  FERRY_TRY(const auto* stream, set.one<pb::TcpStreamEntry>(name));
  const std::string_view bytes = set.entries(name).front().extra;
  const std::string subject = fmt::format("TCP socket {} whose connection has ended", entry.ino());
  Peers peers;
  peers.remote = entry.family() == AF_INET ? Endpoint(AF_INET, 1, {htonl(INADDR_LOOPBACK)}, 0)
                                           : Endpoint(AF_INET6, 1, {0, 0, 0, htonl(1)}, 0);
  // One of its own for every such socket.
  peers.remote.port = static_cast<std::uint16_t>(1 + entry.id() % 0xfffe);
  FERRY_TRY(Endpoint local, Endpoint::from_image(entry.family(), entry.src_port(), entry.src_addr()));
  if (on_the_wire(local).family != on_the_wire(peers.remote).family) {
    peers.remote = Endpoint(AF_INET6, peers.remote.port, {0, 0, htonl(0xffff), htonl(INADDR_LOOPBACK)}, 0);
  }
  {
    FERRY_TRY(const Repair repair, Repair::begin(fd, subject));
    FERRY_CHECK(choose_queue(fd, Queue::receive, subject));
    FERRY_CHECK(set_sequence(fd, stream->inq_seq() - stream->inq_len(), subject));
    FERRY_CHECK(choose_queue(fd, Queue::send, subject));
    FERRY_CHECK(set_sequence(fd, stream->inq_seq(), subject));
    const sockaddr_storage remote = peers.remote.to_sockaddr();
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&remote), peers.remote.size()) != 0) {
      return sys_fail(fmt::format("connect({}, in repair mode)", subject));
    }
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) != 0) {
      return sys_fail(fmt::format("getsockname({})", subject));
    }
    FERRY_TRY(peers.local, Endpoint::from(own));
    const FromPeer peer{fd, subject, peers, injector_, inside};
    FERRY_CHECK(fill_received(peer, *stream, bytes, stream->inq_seq()));
    Segment segment;
    segment.sequence = stream->inq_seq();
    segment.acknowledged = stream->inq_seq();
    segment.flags = inet_socket::kRst | inet_socket::kAck;
    FERRY_CHECK(peer.send(segment, 0, 0));
    FERRY_CHECK(await_state(fd, kClose, subject));
  }
  if (!stream->ferry_reset()) {
    FERRY_CHECK(get_int(fd, SOL_SOCKET, SO_ERROR, "SO_ERROR"));  // which tells it, and forgets it
  }
  return {};
}

// The handshake begins anew; whoever waits for it goes on waiting.
Result<void> Restorer::connect_again(int fd, const Pending& pending) {
  const int flags = ::fcntl(fd, F_GETFL);
  const sockaddr_storage remote = pending.peers.remote.to_sockaddr();
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return sys_fail(fmt::format("fcntl({}, F_SETFL)", pending.subject));
  }
  const bool begun = ::connect(fd, reinterpret_cast<const sockaddr*>(&remote), pending.peers.remote.size()) == 0 ||
                     errno == EINPROGRESS;
  Result<void> outcome;
  if (!begun) {
    outcome = sys_fail(fmt::format("connect({})", pending.subject));
  }
  if (::fcntl(fd, F_SETFL, flags) != 0) {
    return sys_fail(fmt::format("fcntl({}, F_SETFL)", pending.subject));
  }
  return outcome;
}

Result<void> Restorer::resume(int fd, const pb::InetSkEntry& entry, Inside& inside) {
  const auto found = pending_.find(entry.id());
  if (found == pending_.end()) {
    return {};
  }
  const Pending& pending = found->second;
  const std::string& subject = pending.subject;
  if (pending.syn) {
    return connect_again(fd, pending);
  }
  FERRY_CHECK(end_repair(fd, subject));
  FERRY_CHECK(set_int(fd, SOL_SOCKET, SO_REUSEADDR, entry.opts().reuseaddr() ? 1 : 0, "SO_REUSEADDR"));
  const auto option = [&](int name, bool on) {
    return set_int(fd, IPPROTO_TCP, name, on ? 1 : 0, "TCP_NODELAY or TCP_CORK");
  };
  {
    FERRY_TRY(const Room room, Room::make(fd, false, pending.again.size() + pending.unsent.size()));
    if (!pending.again.empty()) {
      // All of it now, whatever the program thinks of small segments.
      FERRY_CHECK(option(TCP_NODELAY, true));
      FERRY_CHECK(put(fd, pending.again, "send", subject));
    }
    FERRY_CHECK(option(TCP_NODELAY, entry.tcp_opts().nodelay()));
    FERRY_CHECK(option(TCP_CORK, entry.tcp_opts().cork()));
    FERRY_CHECK(put(fd, pending.unsent, "send", subject));
  }
  if (pending.fin && ::shutdown(fd, SHUT_WR) != 0 && errno != ENOTCONN) {
    return sys_fail(fmt::format("shutdown({})", subject));
  }
  if (pending.peer_fin) {
    FERRY_TRY(const Repair repair, Repair::begin(fd, subject));
    Segment segment;
    FERRY_CHECK(choose_queue(fd, Queue::receive, subject));
    FERRY_TRY(segment.sequence, sequence(fd, subject));
    segment.flags = inet_socket::kAck | inet_socket::kFin;
    FERRY_CHECK(choose_queue(fd, Queue::send, subject));
    FERRY_TRY(const std::uint32_t written, sequence(fd, subject));
    segment.acknowledged = written - 1 - static_cast<std::uint32_t>(pending.again.size() + pending.unsent.size());
    const FromPeer peer{fd, subject, pending.peers, injector_, inside};
    FERRY_CHECK(peer.send(segment, 0xffff, 0));
  }
  return {};
}

}  // namespace ferry::state::tcp
