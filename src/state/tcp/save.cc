#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "state/socket/options.h"
#include "state/tcp/repair.h"
#include "state/tcp/states.h"
#include "state/tcp/tcp.h"

namespace ferry::state::tcp {
namespace {

using socket::get_int;
using socket::set_int;

Result<std::uint32_t> count(int fd, unsigned long request, std::string_view name, const std::string& subject) {
  int value = 0;
  if (::ioctl(fd, request, &value) != 0) {
    return sys_fail(fmt::format("ioctl({}, {})", subject, name));
  }
  return static_cast<std::uint32_t>(value);
}

// An option of the socket for as long as this object lives.
class Meanwhile {
 public:
  static Result<Meanwhile> set(int fd, int option, int value, std::string_view name) {
    FERRY_TRY(const int before, get_int(fd, SOL_SOCKET, option, name));
    if (before == value) {
      return Meanwhile(-1, option, before);
    }
    FERRY_CHECK(set_int(fd, SOL_SOCKET, option, value, name));
    return Meanwhile(fd, option, before);
  }
  Meanwhile(Meanwhile&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), option_(other.option_), before_(other.before_) {}
  Meanwhile& operator=(Meanwhile&&) = delete;
  ~Meanwhile() {
    if (fd_ >= 0) {
      (void)::setsockopt(fd_, SOL_SOCKET, option_, &before_, sizeof before_);
    }
  }

 private:
  Meanwhile(int fd, int option, int before) : fd_(fd), option_(option), before_(before) {}
  int fd_, option_, before_;
};

// `size` bytes from the beginning of the chosen queue.
Result<std::string> peek(int fd, std::uint32_t size, std::string_view which, const std::string& subject) {
  std::string out(size, '\0');
  std::size_t done = 0;
  if (size != 0) {
    const ssize_t n = ::recv(fd, out.data(), out.size(), MSG_PEEK | MSG_DONTWAIT);
    if (n < 0) {
      return sys_fail(fmt::format("recv({}, MSG_PEEK of the {} queue)", subject, which));
    }
    done = static_cast<std::size_t>(n);
  }
  if (done != size) {
    return fail(Kind::os, "{}: the {} queue shows {} of {} bytes", subject, which, done, size);
  }
  return out;
}

// Urgent data (tcp(7), sockatmark(3)) is one byte of the queue that is not read with the rest: a read ends
// before it, and goes on behind it.
Result<std::string> peek_received(int fd, const std::string& subject, pb::TcpStreamEntry& out) {
  std::uint32_t before = 0, size = 0;
  FERRY_TRY(before, count(fd, SIOCINQ, "SIOCINQ", subject));
  FERRY_TRY(const auto all, Meanwhile::set(fd, SO_OOBINLINE, 1, "SO_OOBINLINE"));
  FERRY_TRY(size, count(fd, SIOCINQ, "SIOCINQ", subject));
  pollfd p{fd, POLLPRI, 0};
  if (::poll(&p, 1, 0) < 0) {
    return sys_fail(fmt::format("poll({})", subject));
  }
  const bool unread = (p.revents & POLLPRI) != 0;
  // A program may have a peek offset of its own, since Linux 6.9; without that option there is none.
  const auto offset = get_int(fd, SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF");
  std::string bytes;
  if (!unread && before == size) {
    if (offset.has_value() && *offset >= 0) {
      FERRY_TRY(const auto off, Meanwhile::set(fd, SO_PEEK_OFF, -1, "SO_PEEK_OFF"));
      return peek(fd, size, "receive", subject);
    }
    return peek(fd, size, "receive", subject);
  }
  // Piece by piece: a read ends at the mark.
  if (!offset.has_value() || !set_int(fd, SOL_SOCKET, SO_PEEK_OFF, 0, "SO_PEEK_OFF").has_value()) {
    return fail(Kind::unsupported, "{}: it holds urgent data, which can be looked at only from Linux 6.9 on", subject);
  }
  const int user = *offset;
  std::uint32_t mark = size;
  while (bytes.size() < size) {
    std::string piece(size - bytes.size(), '\0');
    const ssize_t n = ::recv(fd, piece.data(), piece.size(), MSG_PEEK | MSG_DONTWAIT);
    if (n <= 0) {
      break;
    }
    if (bytes.empty() && static_cast<std::uint32_t>(n) < size) {
      mark = static_cast<std::uint32_t>(n);
    }
    bytes.append(piece, 0, static_cast<std::size_t>(n));
  }
  FERRY_CHECK(set_int(fd, SOL_SOCKET, SO_PEEK_OFF, user, "SO_PEEK_OFF"));
  if (bytes.size() != size) {
    return fail(Kind::os, "{}: the receive queue shows {} of {} bytes", subject, bytes.size(), size);
  }
  mark = before < size ? before : mark;
  if (unread) {
    out.set_ferry_urgent_at(mark == size ? 0 : mark);
  } else {
    bytes.erase(mark, 1);  // read already, by MSG_OOB; a new socket would give it a second time
  }
  return bytes;
}

Result<void> check_layers(int fd, const std::string& subject) {
  char name[16] = {};
  socklen_t size = sizeof name;
  // TCP_ULP, tcp(7): kernel TLS and the like keep a state of their own, which nothing reads back.
  if (::getsockopt(fd, IPPROTO_TCP, TCP_ULP, name, &size) == 0 && name[0] != '\0') {
    return fail(Kind::unsupported, "{}: a connection with the kernel's \"{}\" layer cannot be carried over", subject,
                std::string(name));
  }
  return {};
}

}  // namespace

bool has_peer(std::uint32_t state) { return state != kClose && state != kListen && state != kTimeWait; }

Result<void> save(int fd, const std::string& subject, pb::InetSkEntry& entry, image::Set& set) {
  FERRY_CHECK(check_layers(fd, subject));
  FERRY_TRY(const tcp_info known, info(fd, subject));
  const std::uint32_t state = known.tcpi_state;
  if (state == kSynReceived) {
    return fail(Kind::unsupported, "{}: a connection whose handshake is not complete cannot be carried over; try again",
                subject);
  }
  pb::TcpStreamEntry out;
  FERRY_TRY(const Repair repair, Repair::begin(fd, subject));

  FERRY_TRY(const int mss, get_int(fd, IPPROTO_TCP, TCP_MAXSEG, "TCP_MAXSEG"));
  out.set_mss_clamp(static_cast<std::uint32_t>(mss));
  out.set_opt_mask(known.tcpi_options & (TCPI_OPT_TIMESTAMPS | TCPI_OPT_SACK | TCPI_OPT_WSCALE));
  out.set_snd_wscale(known.tcpi_snd_wscale);
  out.set_rcv_wscale(known.tcpi_rcv_wscale);
  if ((out.opt_mask() & TCPI_OPT_TIMESTAMPS) != 0) {
    FERRY_TRY(const int timestamp, get_int(fd, IPPROTO_TCP, TCP_TIMESTAMP, "TCP_TIMESTAMP"));
    out.set_timestamp(static_cast<std::uint32_t>(timestamp));
  }
  if (auto now = window(fd, subject); now.has_value()) {
    out.set_snd_wl1(now->snd_wl1);
    out.set_snd_wnd(now->snd_wnd);
    out.set_max_window(now->max_window);
    out.set_rcv_wnd(now->rcv_wnd);
    out.set_rcv_wup(now->rcv_wup);
  }

  FERRY_CHECK(choose_queue(fd, Queue::receive, subject));
  FERRY_TRY(const std::uint32_t received, sequence(fd, subject));
  FERRY_TRY(std::string bytes, peek_received(fd, subject, out));
  out.set_inq_seq(received);
  out.set_inq_len(static_cast<std::uint32_t>(bytes.size()));

  FERRY_CHECK(choose_queue(fd, Queue::send, subject));
  FERRY_TRY(const std::uint32_t written, sequence(fd, subject));
  std::uint32_t queued = 0, unsent = 0;
  FERRY_TRY(queued, count(fd, SIOCOUTQ, "SIOCOUTQ", subject));
  FERRY_TRY(unsent, count(fd, SIOCOUTQNSD, "SIOCOUTQNSD", subject));
  if (fin_sent(state)) {
    // Both count a FIN as a byte, as sequence numbers do.
    queued -= std::min(queued, 1U);
    unsent -= std::min(unsent, 1U);
  }
  FERRY_TRY(const std::string to_send, peek(fd, queued, "send", subject));
  out.set_outq_seq(written);
  out.set_outq_len(queued);
  out.set_unsq_len(unsent);
  FERRY_CHECK(choose_queue(fd, Queue::none, subject));

  entry.set_state(state);
  set.add(image::Name{image::Type::tcp_stream, entry.ino()}, std::move(out), bytes + to_send);
  return {};
}

Result<void> save_ended(int fd, const std::string& subject, const pb::InetSkEntry& entry, bool reset, image::Set& set) {
  pb::TcpStreamEntry out;
  FERRY_TRY(const Repair repair, Repair::begin(fd, subject));
  FERRY_CHECK(choose_queue(fd, Queue::receive, subject));
  FERRY_TRY(const std::uint32_t received, sequence(fd, subject));
  FERRY_TRY(std::string bytes, peek_received(fd, subject, out));
  FERRY_CHECK(choose_queue(fd, Queue::none, subject));
  out.clear_ferry_urgent_at();
  out.set_inq_seq(received);
  out.set_inq_len(static_cast<std::uint32_t>(bytes.size()));
  out.set_outq_len(0);
  out.set_outq_seq(0);
  out.set_opt_mask(0);
  out.set_snd_wscale(0);
  out.set_mss_clamp(0);
  out.set_ferry_reset(reset);
  set.add(image::Name{image::Type::tcp_stream, entry.ino()}, std::move(out), std::move(bytes));
  return {};
}

}  // namespace ferry::state::tcp
