#include "programs/criu/rpc_channel.h"

#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "sys/file.h"
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
  iovec part{const_cast<char*>(packet.data()), packet.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (passed >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &passed, sizeof passed);
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(fd_, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) {
    return fail(Kind::gone, "the caller has closed the RPC socket");
  }
  if (sent < 0) {
    return sys_fail(fmt::format("sendmsg(fd {})", fd_));
  }
  return {};
}

bool RpcChannel::hung_up() const {
  // POLLHUP, not POLLRDHUP: a caller that has only shut down its writing side still waits for the answer.
  pollfd poll_fd{fd_, 0, 0};
  return ::poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & POLLHUP) != 0;
}

}  // namespace ferry::criu
