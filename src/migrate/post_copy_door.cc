#include "migrate/post_copy_door.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "migrate/record.h"

namespace ferry::migrate {
namespace {

constexpr const char* kRunDirectory = "/run/ferry";
constexpr int kWaiting = 4;
constexpr timeval kPatience{.tv_sec = 3, .tv_usec = 0};  // for a process of this host that has connected already
constexpr std::size_t kLongestText = 256;

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un out{};
  out.sun_family = AF_UNIX;
  if (path.size() >= sizeof out.sun_path) {
    return fail(Kind::invalid, "{} is too long for the name of a socket", path);
  }
  std::memcpy(out.sun_path, path.data(), path.size());
  return out;
}

}  // namespace

std::string door_path(const std::string& move) { return fmt::format("{}/{}.pages", kRunDirectory, move); }

Result<UniqueFd> open_door(const std::string& path) {
  if (::mkdir(kRunDirectory, 0700) != 0 && errno != EEXIST) {
    return sys_fail(fmt::format("mkdir({})", kRunDirectory));
  }
  FERRY_TRY(const sockaddr_un address, address_of(path));
  UniqueFd out(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!out) {
    return sys_fail("socket(AF_UNIX)");
  }
  if (::bind(out.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 || ::listen(out.get(), kWaiting) != 0) {
    return sys_fail(fmt::format("listening at {}", path));
  }
  return out;
}

UniqueFd accept_at_door(int listener) {
  UniqueFd out(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (out) {
    ::setsockopt(out.get(), SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  }
  return out;
}

// One packet: whether the source wants direct connections, the address, and two descriptors.
Result<Brought> take_what_is_brought(int socket) {
  std::array<char, kLongestText + 1> text{};
  iovec part{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(2 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = -1;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    return sys_fail("recvmsg(connection for memory)");
  }
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  if (got == 0 || header == nullptr || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(2 * sizeof(int))) {
    return fail(Kind::corrupt, "a process came to bring a connection for memory, and brought none");
  }
  std::array<int, 2> fds{};
  std::memcpy(fds.data(), CMSG_DATA(header), sizeof fds);
  return Brought{UniqueFd(fds[0]), UniqueFd(fds[1]), text[0] == 'd', std::string(text.data() + 1, static_cast<std::size_t>(got) - 1)};
}

Result<void> bring_connection(const std::string& move, const Link& link, bool direct, const std::string& reached) {
  FERRY_CHECK(check_move_id(move));
  FERRY_TRY(const sockaddr_un address, address_of(door_path(move)));
  const UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) {
    return sys_fail("socket(AF_UNIX)");
  }
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail(Kind::gone, "nobody on this host waits for the memory of move {}", move);
  }
  std::string text = (direct ? "d" : "-") + reached.substr(0, kLongestText);
  iovec part{text.data(), text.size()};
  const std::array fds{link.descriptor(), link.writing_descriptor()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fds)> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fds);
  std::memcpy(CMSG_DATA(header), fds.data(), sizeof fds);
  if (::sendmsg(socket.get(), &message, MSG_NOSIGNAL) < 0) {
    return sys_fail("sendmsg(connection for memory)");
  }
  // sshd ends the connection when its command does.
  char nothing = 0;
  while (::recv(socket.get(), &nothing, 1, 0) < 0 && errno == EINTR) {
  }
  return {};
}

}  // namespace ferry::migrate
