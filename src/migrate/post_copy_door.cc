#include "migrate/post_copy_door.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <span>

#include "container/run_directory.h"
#include "migrate/record.h"
#include "sys/passed_fds.h"

namespace ferry::migrate {
namespace {

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

std::string door_path(const std::string& move) { return fmt::format("{}/{}.pages", container::kRunDirectory, move); }

Result<UniqueFd> open_door(const std::string& path) {
  FERRY_CHECK(container::make_run_directory());
  FERRY_TRY(const sockaddr_un address, address_of(path));
  UniqueFd out(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!out) {
    return sys_fail("socket(AF_UNIX)");
  }
  if (::bind(out.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(out.get(), kWaiting) != 0) {
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
  FERRY_TRY(auto got, sys::receive_with_fds(socket, std::as_writable_bytes(std::span(text)), "connection for memory"));
  if (got.bytes == 0 || got.fds.size() != 2) {
    return fail(Kind::corrupt, "a process came to bring a connection for memory, and brought none");
  }
  return Brought{std::move(got.fds[0]), std::move(got.fds[1]), text[0] == 'd',
                 std::string(text.data() + 1, got.bytes - 1)};
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
  const std::string text = (direct ? "d" : "-") + reached.substr(0, kLongestText);
  const std::array fds{link.descriptor(), link.writing_descriptor()};
  FERRY_CHECK(sys::send_with_fds(socket.get(), std::as_bytes(std::span(text)), fds, "connection for memory"));
  // sshd ends the connection when its command does.
  char nothing = 0;
  while (::recv(socket.get(), &nothing, 1, 0) < 0 && errno == EINTR) {
  }
  return {};
}

}  // namespace ferry::migrate
