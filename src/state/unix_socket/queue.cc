#include "state/unix_socket/queue.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <limits>

#include "state/socket/options.h"

namespace ferry::state::unix_socket {
namespace {

constexpr std::size_t kFirstRoom = 256 * 1024;  // more than a message of the default SO_SNDBUF
constexpr std::size_t kMostDescriptors = 253;   // SCM_MAX_FD, unix(7)

// The peek offset belongs to the socket, not to our descriptor, so it is put back whatever happens.
class PeekOffset {
 public:
  static Result<PeekOffset> set(int fd, std::string_view subject) {
    FERRY_TRY(const int before, socket::get_int(fd, SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF"));
    PeekOffset guard(fd, before);
    FERRY_CHECK(guard.move(0).during("{}", subject));
    return guard;
  }
  PeekOffset(PeekOffset&& other) noexcept : fd_(std::exchange(other.fd_, -1)), before_(other.before_) {}
  PeekOffset& operator=(PeekOffset&&) = delete;
  ~PeekOffset() {
    if (fd_ >= 0) {
      (void)::setsockopt(fd_, SOL_SOCKET, SO_PEEK_OFF, &before_, sizeof before_);
    }
  }
  Result<void> move(int to) const { return socket::set_int(fd_, SOL_SOCKET, SO_PEEK_OFF, to, "SO_PEEK_OFF"); }

 private:
  PeekOffset(int fd, int before) : fd_(fd), before_(before) {}
  int fd_;
  int before_;
};

void take_control(msghdr& message, Packet& out) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET) {
      continue;
    }
    if (c->cmsg_type == SCM_CREDENTIALS && c->cmsg_len == CMSG_LEN(sizeof(ucred))) {
      std::memcpy(&out.credentials.emplace(), CMSG_DATA(c), sizeof(ucred));
    }
    if (c->cmsg_type == SCM_RIGHTS) {
      const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
        out.descriptors.emplace_back(fd);
      }
    }
  }
}

bool same_credentials(const Packet& a, const Packet& b) {
  return a.credentials.has_value() == b.credentials.has_value() &&
         (!a.credentials || (a.credentials->pid == b.credentials->pid && a.credentials->uid == b.credentials->uid &&
                             a.credentials->gid == b.credentials->gid));
}

template <class T>
void put_control(cmsghdr& c, int type, const T* values, std::size_t count) {
  c.cmsg_level = SOL_SOCKET;
  c.cmsg_type = type;
  c.cmsg_len = CMSG_LEN(count * sizeof(T));
  std::memcpy(CMSG_DATA(&c), values, count * sizeof(T));
}

}  // namespace

Result<std::vector<Packet>> peek(int fd, int type, std::string_view subject) {
  const bool stream = type == SOCK_STREAM;
  FERRY_TRY(const PeekOffset offset, PeekOffset::set(fd, subject));
  std::vector<Packet> out;
  std::vector<char> room(kFirstRoom);
  std::vector<char> control(CMSG_SPACE(kMostDescriptors * sizeof(int)) + CMSG_SPACE(256));
  int at = 0;
  // A reset waits behind the data, for the first read that finds none, and a look would take it away.
  pollfd state{fd, 0, 0};
  int left = std::numeric_limits<int>::max();
  if (type != SOCK_DGRAM && ::poll(&state, 1, 0) == 1 && (state.revents & POLLERR) != 0 &&
      ::ioctl(fd, SIOCINQ, &left) != 0) {
    return sys_fail(fmt::format("ioctl({}, SIOCINQ)", subject));
  }
  while (left > 0) {
    iovec part{room.data(), room.size()};
    sockaddr_un from{};
    msghdr message{};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t n = ::recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0 && (errno == EAGAIN || errno == ECONNRESET || errno == ENOTCONN || errno == EINVAL)) {
      return out;  // nothing (more) there, or a socket that never was connected
    }
    if (n < 0) {
      return sys_fail(fmt::format("recvmsg({}, MSG_PEEK)", subject));
    }
    Packet packet;
    take_control(message, packet);
    constexpr std::size_t head = offsetof(sockaddr_un, sun_path);
    if (type == SOCK_DGRAM && message.msg_namelen > head) {
      packet.sender.assign(from.sun_path, std::min<std::size_t>(message.msg_namelen - head, sizeof from.sun_path));
    }
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
      return fail(Kind::unsupported, "{}: a message in its queue has more control data than ferry can read", subject);
    }
    if (!stream && static_cast<std::size_t>(n) > room.size()) {
      room.resize(static_cast<std::size_t>(n));
      FERRY_CHECK(offset.move(at));
      continue;
    }
    if (n == 0 && type != SOCK_DGRAM) {
      return out;  // end of file
    }
    packet.bytes.assign(room.data(), static_cast<std::size_t>(n));
    at += static_cast<int>(n);
    left -= static_cast<int>(n);
    if (stream && !out.empty() && packet.descriptors.empty() && out.back().descriptors.empty() &&
        same_credentials(packet, out.back())) {
      out.back().bytes += packet.bytes;
    } else {
      out.push_back(std::move(packet));
    }
  }
  return out;
}

Result<void> send(int fd, const Message& what, bool stream, std::string_view subject) {
  if (what.descriptors.size() > kMostDescriptors) {
    return fail(Kind::corrupt, "{}: a message with {} descriptors", subject, what.descriptors.size());
  }
  const std::size_t rights = what.descriptors.size() * sizeof(int);
  std::vector<char> control(CMSG_SPACE(rights) + CMSG_SPACE(sizeof(ucred)));
  std::string_view bytes = what.bytes;
  bool with_descriptors = !what.descriptors.empty();
  do {
    iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_name = const_cast<sockaddr*>(what.to);
    message.msg_namelen = what.to == nullptr ? 0 : what.to_size;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    std::size_t used = 0;
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    if (what.credentials) {
      put_control(*c, SCM_CREDENTIALS, &*what.credentials, 1);
      used += CMSG_SPACE(sizeof(ucred));
      c = reinterpret_cast<cmsghdr*>(control.data() + used);
    }
    if (with_descriptors) {
      put_control(*c, SCM_RIGHTS, what.descriptors.data(), what.descriptors.size());
      used += CMSG_SPACE(rights);
    }
    message.msg_controllen = used;
    message.msg_control = used == 0 ? nullptr : control.data();
    const ssize_t n = ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n < 0) {
      return sys_fail(fmt::format("sendmsg({}, {} bytes)", subject, bytes.size()));
    }
    with_descriptors = false;  // they went with the first byte
    bytes.remove_prefix(static_cast<std::size_t>(n));
  } while (stream && !bytes.empty());
  return {};
}

}  // namespace ferry::state::unix_socket
