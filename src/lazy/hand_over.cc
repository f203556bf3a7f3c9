#include "lazy/hand_over.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <span>

#include "sys/file.h"
#include "sys/passed_fds.h"

namespace ferry::lazy {
namespace {

// By way of a descriptor: a path may be longer than a socket's name.
Result<sockaddr_un> address_in(int directory, const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string text = path.starts_with('/') ? path : fmt::format("/proc/self/fd/{}/{}", directory, path);
  if (text.size() >= sizeof address.sun_path) {
    return fail(Kind::invalid, "the socket's path {} is longer than the {} bytes of a Unix socket's name", text,
                sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, text.c_str(), text.size() + 1);
  return address;
}

Result<UniqueFd> make_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) {
    return sys_fail("socket(AF_UNIX)");
  }
  return fd;
}

Result<void> send_number(int socket, std::int32_t number) {
  if (::send(socket, &number, sizeof number, MSG_NOSIGNAL) != sizeof number) {
    return sys_fail("send(lazy-pages socket)");
  }
  return {};
}

}  // namespace

Result<UniqueFd> connect_to_daemon(int directory, const std::string& path) {
  FERRY_TRY(const sockaddr_un address, address_in(directory, path));
  FERRY_TRY(auto socket, make_socket());
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED) {
      return fail(Kind::gone,
                  "nobody listens at {} in the work directory: criu lazy-pages has to run there before a "
                  "lazy restore",
                  path);
    }
    return sys_fail(fmt::format("connect({})", path));
  }
  return socket;
}

Result<UniqueFd> listen_for_restore(int directory, const std::string& path) {
  FERRY_TRY(const sockaddr_un address, address_in(directory, path));
  FERRY_TRY(auto probe, make_socket());
  // A socket that nobody listens on any more is in the way of bind(2); anything else of that name stays.
  struct stat st {};
  if (::lstat(address.sun_path, &st) == 0 && S_ISSOCK(st.st_mode) &&
      ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
      errno == ECONNREFUSED) {
    ::unlink(address.sun_path);
  }
  FERRY_TRY(auto socket, make_socket());
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(address.sun_path, 0600) != 0 || ::listen(socket.get(), 1) != 0) {
    return sys_fail(fmt::format("listening at {}", path));
  }
  return socket;
}

Result<void> send_process(int socket, NsPid pid, int uffd) {
  FERRY_CHECK(send_number(socket, pid.value));
  const std::byte byte{};
  FERRY_CHECK(sys::send_with_fds(socket, std::span(&byte, 1), std::span(&uffd, 1), "lazy-pages socket, userfaultfd"));
  return {};
}

Result<void> send_idle_process(int socket, NsPid pid) { return send_number(socket, -pid.value); }
Result<void> send_end(int socket) { return send_number(socket, static_cast<std::int32_t>(kEndOfTree)); }

Result<Handed> receive_handed(int socket) {
  std::int32_t number = 0;
  ssize_t n = 0;
  do {
    n = ::recv(socket, &number, sizeof number, MSG_WAITALL);
  } while (n < 0 && errno == EINTR);
  if (n == 0) {
    return Handed{Handed::What::hung_up, {}, {}};
  }
  if (n != sizeof number) {
    return n < 0 ? Result<Handed>(sys_fail("recv(lazy-pages socket)"))
                 : Result<Handed>(fail(Kind::corrupt, "the restore broke off within a word"));
  }
  if (static_cast<std::uint32_t>(number) == kEndOfTree) {
    return Handed{Handed::What::end, {}, {}};
  }
  if (number <= 0) {
    return Handed{Handed::What::idle, NsPid(-number), {}};
  }
  std::byte byte{};
  FERRY_TRY(auto got, sys::receive_with_fds(socket, std::span(&byte, 1), "lazy-pages socket, userfaultfd"));
  if (got.fds.size() != 1) {
    return fail(Kind::corrupt, "no userfaultfd came with process {}", number);
  }
  return Handed{Handed::What::process, NsPid(number), std::move(got.fds.front())};
}

}  // namespace ferry::lazy
