#include "state/inet_socket/datagrams.h"

#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <netinet/udp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "state/socket/options.h"
#include "tracee/deadline.h"

namespace ferry::state::inet_socket {
namespace {

using socket::get_int;
using socket::set_int;

constexpr int kMemInfo = 55;  // SO_MEMINFO, Linux 4.12
constexpr int kUdpGro = 104;  // UDP_GRO, as control message: the size of the datagrams that were joined
constexpr std::chrono::seconds kDeliveryTime{2};

// An option of the socket for as long as this object lives.
class Meanwhile {
 public:
  Meanwhile(int fd, int level, int name, int value) : fd_(fd), level_(level), name_(name) {
    const auto before = get_int(fd, level, name, "");
    if (!before.has_value() || *before == value || !set_int(fd, level, name, value, "").has_value()) {
      fd_ = -1;  // there is no such option for this socket, or nothing to change
    } else {
      before_ = *before;
    }
  }
  Meanwhile(const Meanwhile&) = delete;
  Meanwhile& operator=(const Meanwhile&) = delete;
  ~Meanwhile() {
    if (fd_ >= 0) {
      (void)::setsockopt(fd_, level_, name_, &before_, sizeof before_);
    }
  }

 private:
  int fd_, level_, name_, before_ = 0;
};

struct Datagram {
  std::string bytes;
  sockaddr_storage source{}, destination{};
  int joined = 0;  // the size of each of several that the kernel has made one (udp(7), UDP_GRO)
};

// False if there is none (any more).
Result<bool> next(int fd, const std::string& subject, std::string& room, Datagram& out) {
  alignas(cmsghdr) char control[512];
  iovec part{room.data(), room.size()};
  msghdr message{};
  message.msg_name = &out.source;
  message.msg_namelen = sizeof out.source;
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t n = ::recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT);
  if (n < 0) {
    if (errno != EAGAIN) {
      return sys_fail(fmt::format("recvmsg({}, MSG_PEEK)", subject));
    }
    return false;
  }
  out.bytes.assign(room, 0, static_cast<std::size_t>(n));
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    const std::size_t size = c->cmsg_len - CMSG_LEN(0);
    if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_ORIGDSTADDR) ||
        (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_ORIGDSTADDR)) {
      std::memcpy(&out.destination, CMSG_DATA(c), std::min(size, sizeof out.destination));
    } else if (c->cmsg_level == SOL_UDP && c->cmsg_type == kUdpGro && size >= sizeof out.joined) {
      std::memcpy(&out.joined, CMSG_DATA(c), sizeof out.joined);
    }
  }
  return true;
}

std::string bytes_of(const sockaddr_storage& address) {
  return {reinterpret_cast<const char*>(&address),
          address.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6)};
}

Result<void> connect(int fd, const sockaddr_storage& address, socklen_t size, const std::string& subject) {
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), size) != 0) {
    return sys_fail(fmt::format("connect({})", subject));
  }
  return {};
}

Result<Endpoint> peer_of(const std::string& bytes) {
  sockaddr_storage address{};
  if (bytes.size() > sizeof address) {
    return fail(Kind::corrupt, "sk-queues.img has a socket address of {} bytes", bytes.size());
  }
  std::memcpy(&address, bytes.data(), bytes.size());
  return Endpoint::from(address);
}

Result<Endpoint> endpoint(const std::string& bytes) {
  FERRY_TRY(const Endpoint raw, peer_of(bytes));
  return on_the_wire(raw);
}

Result<std::uint32_t> received(int fd, const std::string& subject) {
  std::uint32_t numbers[SK_MEMINFO_VARS] = {};
  socklen_t size = sizeof numbers;
  if (::getsockopt(fd, SOL_SOCKET, kMemInfo, numbers, &size) != 0) {
    return sys_fail(fmt::format("getsockopt({}, SO_MEMINFO)", subject));
  }
  return numbers[SK_MEMINFO_RMEM_ALLOC];
}

// One after the other: packets that different processors handle may overtake each other.
Result<bool> deliver(int fd, const std::string& subject, const std::string& packet, const Endpoint& to,
                     Injector& injector, Inside& inside) {
  FERRY_TRY(const std::uint32_t before, received(fd, subject));
  FERRY_CHECK(injector.send(packet, to, inside));
  const tracee::Deadline deadline(kDeliveryTime);
  for (;;) {
    FERRY_TRY(const std::uint32_t now, received(fd, subject));
    if (now != before || deadline.passed()) {
      return now != before;
    }
    std::this_thread::yield();
  }
}

}  // namespace

Result<void> save_datagrams(int fd, const std::string& subject, const pb::InetSkEntry& entry, image::Set& set) {
  int unsent = 0, waiting = 0;
  const auto cork = get_int(fd, IPPROTO_UDP, UDP_CORK, "UDP_CORK");
  if (cork.has_value() && *cork != 0 && ::ioctl(fd, SIOCOUTQ, &unsent) == 0 && unsent > 0) {
    return fail(Kind::unsupported, "{}: {} bytes are held back (UDP_CORK), which nobody can read; try again", subject,
                unsent);
  }
  // Not by a look at the queue: an empty datagram that was looked at once is passed over afterwards.
  FERRY_TRY(const std::uint32_t memory, received(fd, subject));
  if (memory == 0) {
    return {};
  }
  char byte = 0;
  if (entry.type() != SOCK_DGRAM || (entry.proto() != IPPROTO_UDP && entry.proto() != IPPROTO_UDPLITE)) {
    if (::recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0) {
      (void)::ioctl(fd, FIONREAD, &waiting);
      log::warning("{}: packets that were received and not read yet are left out ({} bytes in the first)", subject,
                   waiting);
    }
    return {};
  }
  const Meanwhile offset(fd, SOL_SOCKET, SO_PEEK_OFF, 0);
  const Meanwhile destination4(fd, IPPROTO_IP, IP_RECVORIGDSTADDR, 1),
      destination6(fd, IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1);
  std::string room(65536, '\0');
  for (;;) {
    Datagram datagram;
    FERRY_TRY(const bool more, next(fd, subject, room, datagram));
    if (!more) {
      return {};
    }
    const std::size_t step = datagram.joined > 0 ? static_cast<std::size_t>(datagram.joined) : datagram.bytes.size();
    for (std::size_t at = 0; at == 0 || at < datagram.bytes.size(); at += step) {
      pb::SkPacketEntry packet;
      std::string piece = datagram.bytes.substr(at, step);
      packet.set_id_for(entry.id());
      packet.set_length(static_cast<std::uint32_t>(piece.size()));
      packet.set_ferry_source(bytes_of(datagram.source));
      packet.set_ferry_destination(bytes_of(datagram.destination));
      set.add(image::Name{image::Type::sk_queues, 0}, std::move(packet), std::move(piece));
      if (step == 0) {
        break;
      }
    }
  }
}

Result<void> restore_datagrams(int fd, const std::string& subject, const pb::InetSkEntry& entry, const image::Set& set,
                               Injector& injector, Inside& inside) {
  int before = -1;
  for (const image::Entry& e : set.entries({image::Type::sk_queues, 0})) {
    const auto& packet = static_cast<const pb::SkPacketEntry&>(*e.message);
    if (packet.id_for() != entry.id() || !packet.has_ferry_source()) {
      continue;
    }
    FERRY_TRY(const Endpoint from, endpoint(packet.ferry_source()));
    FERRY_TRY(Endpoint to, endpoint(packet.ferry_destination()));
    FERRY_TRY(const bool local, inside.get<bool>([&]() -> Result<bool> { return is_local(to); }));
    if (!local || from.family != to.family) {
      log::warning("{}: a datagram from {} to {} cannot be given back", subject, from.text(), to.text());
      continue;
    }
    if (before < 0) {
      // Its share of the buffer may be larger than it was.
      FERRY_TRY(before, get_int(fd, SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF"));
      FERRY_CHECK(set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, before * 2, "SO_RCVBUFFORCE"));
    }
    FERRY_TRY(const std::string made, udp_packet(from, to, static_cast<std::uint8_t>(entry.proto()), e.extra));
    // Of several sockets that share a port (SO_REUSEPORT) the one that is connected to the sender gets it.
    FERRY_TRY(const Endpoint sender, peer_of(packet.ferry_source()));
    if (entry.opts().so_reuseport()) {
      FERRY_CHECK(connect(fd, sender.to_sockaddr(), sender.size(), subject));
    }
    FERRY_TRY(const bool arrived, deliver(fd, subject, made, to, injector, inside));
    if (entry.opts().so_reuseport()) {
      FERRY_CHECK(connect(fd, sockaddr_storage{}, sizeof(sockaddr), subject));  // AF_UNSPEC: no more (connect(2))
      FERRY_CHECK(socket::prepare_bind(fd, entry.opts(), subject));             // which forgets the device
    }
    if (!arrived) {
      log::warning("{}: a datagram from {} to {} was given back and did not arrive", subject, from.text(), to.text());
    }
  }
  if (before < 0) {
    return {};
  }
  FERRY_CHECK(set_int(fd, SOL_SOCKET, SO_RCVBUFFORCE, before / 2, "SO_RCVBUFFORCE"));
  if (entry.opts().has_so_buf_lock()) {
    constexpr int kBufLock = 72;  // SO_BUF_LOCK, Linux 5.15
    return set_int(fd, SOL_SOCKET, kBufLock, static_cast<int>(entry.opts().so_buf_lock()), "SO_BUF_LOCK");
  }
  return {};
}

}  // namespace ferry::state::inet_socket
