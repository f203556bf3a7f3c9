#include "sys/nfnetlink.h"

#include <arpa/inet.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <string>

namespace ferry::sys {
namespace {

std::span<const std::byte> bytes_of(const auto& value) { return std::as_bytes(std::span(&value, 1)); }

void append(std::vector<std::byte>& to, std::span<const std::byte> what) {
  to.insert(to.end(), what.begin(), what.end());
  to.resize((to.size() + 3) & ~std::size_t{3});
}

}  // namespace

void Attributes::bytes(std::uint16_t type, std::span<const std::byte> value) {
  const nlattr head{static_cast<std::uint16_t>(sizeof(nlattr) + value.size()), type};
  append(data_, bytes_of(head));
  append(data_, value);
}

void Attributes::text(std::uint16_t type, std::string_view value) {
  const std::string with_end(value);
  bytes(type, std::as_bytes(std::span(with_end.c_str(), with_end.size() + 1)));
}

void Attributes::be16(std::uint16_t type, std::uint16_t value) {
  const std::uint16_t swapped = htons(value);
  bytes(type, bytes_of(swapped));
}

void Attributes::be32(std::uint16_t type, std::uint32_t value) {
  const std::uint32_t swapped = htonl(value);
  bytes(type, bytes_of(swapped));
}

void Attributes::nest(std::uint16_t type, const Attributes& inner) {
  bytes(static_cast<std::uint16_t>(type | NLA_F_NESTED), inner.data());
}

std::vector<std::byte> encode(const NfMessage& message, std::span<const std::byte> attributes) {
  nlmsghdr head{};
  head.nlmsg_len = static_cast<std::uint32_t>(NLMSG_HDRLEN + sizeof(nfgenmsg) + attributes.size());
  head.nlmsg_type = static_cast<std::uint16_t>(message.subsystem << 8 | message.type);
  head.nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | message.flags);
  head.nlmsg_seq = message.sequence;
  const nfgenmsg general{message.family, NFNETLINK_V0, htons(message.resource)};
  std::vector<std::byte> out;
  append(out, bytes_of(head));
  append(out, bytes_of(general));
  append(out, attributes);
  return out;
}

Result<UniqueFd> open_nfnetlink() {
  UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
  if (!fd) {
    return sys_fail("socket(AF_NETLINK, NETLINK_NETFILTER)");
  }
  sockaddr_nl own{};
  own.nl_family = AF_NETLINK;
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0) {
    return sys_fail("bind(netlink socket for netfilter)");
  }
  return fd;
}

}  // namespace ferry::sys
