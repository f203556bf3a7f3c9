#include "sys/sock_diag.h"

#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

namespace ferry::sys {
namespace {

template <class T>
std::optional<T> value_at(std::span<const std::byte> bytes, std::size_t index = 0) {
  if (bytes.size() < (index + 1) * sizeof(T)) {
    return std::nullopt;
  }
  T value{};
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof value);
  return value;
}

}  // namespace

Result<UnixDiag> parse_unix_diag(std::span<const std::byte> payload) {
  const auto head = value_at<unix_diag_msg>(payload);
  if (!head) {
    return fail(Kind::corrupt, "an answer of sock_diag has {} bytes", payload.size());
  }
  UnixDiag out;
  out.type = head->udiag_type;
  out.state = head->udiag_state;
  out.inode = head->udiag_ino;
  for (const auto& [type, bytes] : parse_attributes(payload.subspan(sizeof(unix_diag_msg)))) {
    switch (type) {
      case UNIX_DIAG_PEER:
        out.peer = value_at<std::uint32_t>(bytes);
        break;
      case UNIX_DIAG_ICONS:
        for (std::size_t i = 0; i < bytes.size() / sizeof(std::uint32_t); ++i) {
          out.pending.push_back(*value_at<std::uint32_t>(bytes, i));
        }
        break;
      case UNIX_DIAG_RQLEN:
        if (const auto lengths = value_at<unix_diag_rqlen>(bytes)) {
          out.queue = lengths->udiag_rqueue;
          out.write_queue = lengths->udiag_wqueue;
        }
        break;
      case UNIX_DIAG_SHUTDOWN:
        out.shutdown = value_at<std::uint8_t>(bytes).value_or(0);
        break;
      default:
        break;
    }
  }
  return out;
}

namespace {

unix_diag_req request_for(std::uint32_t inode) {
  unix_diag_req request{};
  request.sdiag_family = AF_UNIX;
  request.udiag_states = ~0U;
  request.udiag_ino = inode;
  request.udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_ICONS | UDIAG_SHOW_RQLEN;
  request.udiag_cookie[0] = request.udiag_cookie[1] = ~0U;  // any
  return request;
}

}  // namespace

Result<UnixDiag> unix_diag(Netlink& netlink, std::uint32_t inode) {
  const unix_diag_req request = request_for(inode);
  std::optional<UnixDiag> out;
  FERRY_CHECK(netlink.request(SOCK_DIAG_BY_FAMILY, 0, std::as_bytes(std::span(&request, 1)),
                              fmt::format("Unix socket {}", inode),
                              [&](std::span<const std::byte> payload) -> Result<void> {
                                FERRY_TRY(out, parse_unix_diag(payload));
                                return {};
                              }));
  if (!out) {
    return fail(Kind::gone, "sock_diag knows no Unix socket {}", inode);
  }
  return *out;
}

Result<std::vector<InetDiag>> inet_diag(Netlink& netlink, std::uint8_t family, std::uint8_t protocol,
                                        std::uint32_t states) {
  inet_diag_req_v2 request{};
  request.sdiag_family = family;
  request.sdiag_protocol = protocol;
  request.idiag_states = states;
  request.id.idiag_cookie[0] = request.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
  std::vector<InetDiag> out;
  FERRY_CHECK(netlink.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, std::as_bytes(std::span(&request, 1)),
                              "Internet sockets", [&](std::span<const std::byte> payload) -> Result<void> {
                                const auto message = value_at<inet_diag_msg>(payload);
                                if (!message) {
                                  return fail(Kind::corrupt, "an answer of sock_diag has {} bytes", payload.size());
                                }
                                InetDiag one;
                                one.state = message->idiag_state;
                                one.inode = message->idiag_inode;
                                one.local_port = ntohs(message->id.idiag_sport);
                                one.remote_port = ntohs(message->id.idiag_dport);
                                std::copy_n(message->id.idiag_src, 4, one.local.begin());
                                std::copy_n(message->id.idiag_dst, 4, one.remote.begin());
                                out.push_back(one);
                                return {};
                              }));
  return out;
}

Result<std::map<std::uint32_t, UnixDiag>> all_unix_diags(Netlink& netlink) {
  const unix_diag_req request = request_for(0);
  std::map<std::uint32_t, UnixDiag> out;
  FERRY_CHECK(netlink.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, std::as_bytes(std::span(&request, 1)), "Unix sockets",
                              [&](std::span<const std::byte> payload) -> Result<void> {
                                FERRY_TRY(UnixDiag one, parse_unix_diag(payload));
                                out[one.inode] = std::move(one);
                                return {};
                              }));
  return out;
}

}  // namespace ferry::sys
