#include "sys/netlink.h"

#include <linux/netlink.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ferry::sys {
namespace {

constexpr std::size_t kAnswerRoom = 64 * 1024;  // the kernel fills at most 32 KiB at a time

}  // namespace

std::map<std::uint16_t, std::span<const std::byte>> parse_attributes(std::span<const std::byte> bytes) {
  std::map<std::uint16_t, std::span<const std::byte>> out;
  while (bytes.size() >= sizeof(nlattr)) {
    nlattr head{};
    std::memcpy(&head, bytes.data(), sizeof head);
    if (head.nla_len < sizeof head || head.nla_len > bytes.size()) {
      break;
    }
    out[static_cast<std::uint16_t>(head.nla_type & NLA_TYPE_MASK)] =
        bytes.subspan(sizeof head, head.nla_len - sizeof head);
    bytes = bytes.subspan(std::min<std::size_t>(bytes.size(), NLA_ALIGN(head.nla_len)));
  }
  return out;
}

Result<Netlink> Netlink::open(int protocol) {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
  if (!fd) {
    return sys_fail(fmt::format("socket(AF_NETLINK, protocol {})", protocol));
  }
  return Netlink(std::move(fd));
}

Result<void> Netlink::request(std::uint16_t type, std::uint16_t flags, std::span<const std::byte> body,
                              std::string_view subject,
                              const std::function<Result<void>(std::span<const std::byte>)>& take) {
  nlmsghdr head{};
  head.nlmsg_len = static_cast<std::uint32_t>(NLMSG_HDRLEN + body.size());
  head.nlmsg_type = type;
  head.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
  head.nlmsg_seq = ++sequence_;
  std::vector<std::byte> message(NLMSG_HDRLEN + body.size());
  std::memcpy(message.data(), &head, sizeof head);
  std::ranges::copy(body, message.begin() + NLMSG_HDRLEN);
  if (::send(fd_.get(), message.data(), message.size(), 0) < 0) {
    return sys_fail(fmt::format("send(netlink request for {})", subject));
  }
  std::vector<std::byte> answer(kAnswerRoom);
  for (;;) {
    const ssize_t got = ::recv(fd_.get(), answer.data(), answer.size(), 0);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return sys_fail(fmt::format("recv(netlink answer for {})", subject));
    }
    std::span<const std::byte> rest(answer.data(), static_cast<std::size_t>(got));
    while (rest.size() >= NLMSG_HDRLEN) {
      nlmsghdr h{};
      std::memcpy(&h, rest.data(), sizeof h);
      if (h.nlmsg_len < NLMSG_HDRLEN || h.nlmsg_len > rest.size()) {
        return fail(Kind::corrupt, "netlink answer for {} has a bad length", subject);
      }
      const auto payload = rest.subspan(NLMSG_HDRLEN, h.nlmsg_len - NLMSG_HDRLEN);
      rest = rest.subspan(std::min<std::size_t>(rest.size(), NLMSG_ALIGN(h.nlmsg_len)));
      if (h.nlmsg_seq != sequence_) {
        continue;
      }
      if (h.nlmsg_type == NLMSG_DONE) {
        return {};
      }
      if (h.nlmsg_type == NLMSG_ERROR) {
        int error = 0;
        if (payload.size() >= sizeof error) {
          std::memcpy(&error, payload.data(), sizeof error);
        }
        if (error != 0) {
          return sys_fail(-error, fmt::format("netlink request for {}", subject));
        }
        return {};
      }
      FERRY_CHECK(take(payload));
      if ((flags & NLM_F_DUMP) == 0) {
        return {};
      }
    }
  }
}

}  // namespace ferry::sys
