#include "state/unix_socket/queue.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>

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

void take_descriptors(msghdr& message, std::vector<UniqueFd>& out) {
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      out.emplace_back(fd);
    }
  }
}

}  // namespace

Result<std::vector<Packet>> peek(int fd, int type, std::string_view subject) {
  const bool stream = type == SOCK_STREAM;
  FERRY_TRY(const PeekOffset offset, PeekOffset::set(fd, subject));
  std::vector<Packet> out;
  std::vector<char> room(kFirstRoom);
  std::vector<char> control(CMSG_SPACE(kMostDescriptors * sizeof(int)) + CMSG_SPACE(256));
  int at = 0;
  for (;;) {
    iovec part{room.data(), room.size()};
    msghdr message{};
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
    take_descriptors(message, packet.descriptors);
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
    if (stream && !out.empty() && packet.descriptors.empty() && out.back().descriptors.empty()) {
      out.back().bytes += packet.bytes;
    } else {
      out.push_back(std::move(packet));
    }
  }
}

Result<void> send(int fd, std::string_view bytes, const std::vector<int>& descriptors, bool stream,
                  std::string_view subject) {
  if (descriptors.size() > kMostDescriptors) {
    return fail(Kind::corrupt, "{}: a message with {} descriptors", subject, descriptors.size());
  }
  std::vector<char> control(CMSG_SPACE(descriptors.size() * sizeof(int)));
  bool with_descriptors = !descriptors.empty();
  do {
    iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (with_descriptors) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* c = CMSG_FIRSTHDR(&message);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
      std::memcpy(CMSG_DATA(c), descriptors.data(), descriptors.size() * sizeof(int));
    }
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
