#include "programs/criu/rpc_channel.h"

#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <span>

#include "sys/file.h"
#include "sys/passed_fds.h"
#include "sys/sock_diag.h"

namespace ferry::criu {

Result<HostPid> RpcChannel::peer() const {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(fd_, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return sys_fail(fmt::format("getsockopt(fd {}, SO_PEERCRED)", fd_));
  }
  // unix(7): 0 stands for a socket that is not connected, or a peer outside our pid namespace.
  if (credentials.pid <= 0) {
    return fail(Kind::invalid, "fd {} is no Unix socket with a peer in this pid namespace", fd_);
  }
  return HostPid{credentials.pid};
}

Result<std::uint32_t> RpcChannel::peer_inode() const {
  FERRY_TRY(const auto st, sys::stat_fd(fd_, "the RPC socket"));
  FERRY_TRY(auto netlink, sys::Netlink::open(NETLINK_SOCK_DIAG));
  FERRY_TRY(const sys::UnixDiag diag, sys::unix_diag(netlink, static_cast<std::uint32_t>(st.st_ino)));
  if (diag.peer.value_or(0) == 0) {
    return fail(Kind::gone, "the caller has closed the RPC socket");
  }
  return *diag.peer;
}

Result<std::optional<std::string>> RpcChannel::receive() const {
  // MSG_TRUNC makes recv(2) return the packet's whole size; MSG_PEEK leaves the packet there.
  ssize_t size = 0;
  do {
    size = ::recv(fd_, nullptr, 0, MSG_PEEK | MSG_TRUNC);
  } while (size < 0 && errno == EINTR);
  if (size < 0 && errno == ECONNRESET) {
    // The peer closed with packets of ours unread: for us that is the end as well.
    return std::optional<std::string>{};
  }
  if (size < 0) {
    return sys_fail(fmt::format("recv(fd {})", fd_));
  }
  if (size == 0) {
    return std::optional<std::string>{};
  }
  std::string packet(static_cast<std::size_t>(size), '\0');
  do {
    size = ::recv(fd_, packet.data(), packet.size(), 0);
  } while (size < 0 && errno == EINTR);
  if (size < 0) {
    return sys_fail(fmt::format("recv(fd {})", fd_));
  }
  packet.resize(static_cast<std::size_t>(size));
  return std::optional<std::string>{std::move(packet)};
}

Result<void> RpcChannel::send(const std::string& packet, int passed) const {
  const std::span<const int> fds(&passed, passed >= 0 ? 1 : 0);
  const auto sent = sys::send_with_fds(fd_, std::as_bytes(std::span(packet)), fds, fmt::format("fd {}", fd_));
  if (!sent.has_value() && (sent.error().os_errno == EPIPE || sent.error().os_errno == ECONNRESET)) {
    return fail(Kind::gone, "the caller has closed the RPC socket");
  }
  FERRY_CHECK(sent);
  return {};
}

bool RpcChannel::hung_up() const {
  // POLLHUP, not POLLRDHUP: a caller that has only shut down its writing side still waits for the answer.
  pollfd poll_fd{fd_, 0, 0};
  return ::poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & POLLHUP) != 0;
}

}  // namespace ferry::criu
