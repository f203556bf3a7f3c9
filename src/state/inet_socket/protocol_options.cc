#include <linux/icmp.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <optional>

#include "state/inet_socket/inet_socket.h"
#include "state/socket/options.h"

namespace ferry::state::inet_socket {
namespace {

// No value if the option does not exist for this kind of socket.
Result<std::optional<int>> ask(int fd, int level, int option, std::string_view name) {
  auto value = socket::get_int(fd, level, option, name);
  if (value.has_value()) {
    return std::optional<int>(*value);
  }
  const int error = value.error().os_errno;
  if (error == ENOPROTOOPT || error == EOPNOTSUPP || error == ENOTCONN || error == EINVAL) {
    return std::optional<int>();
  }
  return tl::unexpected<Error>(std::move(value).error());
}

// Sets what differs: an option that is as it should be needs no privilege and no support.
Result<void> put(int fd, int level, int option, int value, std::string_view name) {
  FERRY_TRY(const auto now, ask(fd, level, option, name));
  if (now && *now == value) {
    return {};
  }
  if (!now && value == 0) {
    return {};
  }
  return socket::set_int(fd, level, option, value, name);
}

constexpr int kIcmpv6Filter = 1;  // ICMPV6_FILTER of <linux/icmpv6.h>, which cannot stand beside <linux/icmp.h>

}  // namespace

Result<void> collect_ip_options(int fd, pb::InetSkEntry& out) {
  pb::IpOptsEntry& ip = *out.mutable_ip_opts();
  FERRY_TRY(const auto freebind, ask(fd, IPPROTO_IP, IP_FREEBIND, "IP_FREEBIND"));
  FERRY_TRY(const auto packet_info, ask(fd, IPPROTO_IP, IP_PKTINFO, "IP_PKTINFO"));
  FERRY_TRY(const auto tos, ask(fd, IPPROTO_IP, IP_TOS, "IP_TOS"));
  FERRY_TRY(const auto ttl, ask(fd, IPPROTO_IP, IP_TTL, "IP_TTL"));
  if (freebind.value_or(0) != 0) {
    ip.set_freebind(true);
  }
  if (packet_info.value_or(0) != 0) {
    ip.set_pktinfo(true);
  }
  if (tos) {
    ip.set_tos(static_cast<std::uint32_t>(*tos));
  }
  if (ttl) {
    ip.set_ttl(static_cast<std::uint32_t>(*ttl));
  }
  if (out.family() == AF_INET6) {
    FERRY_TRY(const auto only, ask(fd, IPPROTO_IPV6, IPV6_V6ONLY, "IPV6_V6ONLY"));
    out.set_v6only(only.value_or(0) != 0);
  }
  if (out.type() == SOCK_RAW) {
    pb::IpOptsRawEntry& raw = *ip.mutable_raw();
    if (out.family() == AF_INET) {
      FERRY_TRY(const auto header, ask(fd, IPPROTO_IP, IP_HDRINCL, "IP_HDRINCL"));
      FERRY_TRY(const auto whole, ask(fd, IPPROTO_IP, IP_NODEFRAG, "IP_NODEFRAG"));
      raw.set_hdrincl(header.value_or(0) != 0);
      raw.set_nodefrag(whole.value_or(0) != 0);
      icmp_filter filter{};
      socklen_t size = sizeof filter;
      if (out.proto() == IPPROTO_ICMP && ::getsockopt(fd, SOL_RAW, ICMP_FILTER, &filter, &size) == 0) {
        raw.add_icmpv_filter(filter.data);
      }
    } else {
      std::uint32_t filter[8] = {};
      socklen_t size = sizeof filter;
      if (out.proto() == IPPROTO_ICMPV6 && ::getsockopt(fd, IPPROTO_ICMPV6, kIcmpv6Filter, filter, &size) == 0) {
        for (const std::uint32_t word : filter) {
          raw.add_icmpv_filter(word);
        }
      }
    }
  }
  return {};
}

Result<void> restore_ip_options(int fd, const pb::InetSkEntry& entry) {
  if (entry.has_v6only()) {
    FERRY_CHECK(put(fd, IPPROTO_IPV6, IPV6_V6ONLY, entry.v6only() ? 1 : 0, "IPV6_V6ONLY"));
  }
  if (!entry.has_ip_opts()) {
    return {};
  }
  const pb::IpOptsEntry& ip = entry.ip_opts();
  FERRY_CHECK(put(fd, IPPROTO_IP, IP_FREEBIND, ip.freebind() ? 1 : 0, "IP_FREEBIND"));
  FERRY_CHECK(put(fd, IPPROTO_IP, IP_PKTINFO, ip.pktinfo() ? 1 : 0, "IP_PKTINFO"));
  if (ip.has_tos()) {
    FERRY_CHECK(put(fd, IPPROTO_IP, IP_TOS, static_cast<int>(ip.tos()), "IP_TOS"));
  }
  if (ip.has_ttl()) {
    FERRY_CHECK(put(fd, IPPROTO_IP, IP_TTL, static_cast<int>(ip.ttl()), "IP_TTL"));
  }
  if (!ip.has_raw() || entry.type() != SOCK_RAW) {
    return {};
  }
  const pb::IpOptsRawEntry& raw = ip.raw();
  if (entry.family() == AF_INET) {
    FERRY_CHECK(put(fd, IPPROTO_IP, IP_HDRINCL, raw.hdrincl() ? 1 : 0, "IP_HDRINCL"));
    FERRY_CHECK(put(fd, IPPROTO_IP, IP_NODEFRAG, raw.nodefrag() ? 1 : 0, "IP_NODEFRAG"));
  }
  if (raw.icmpv_filter_size() != 0) {
    const std::vector<std::uint32_t> words(raw.icmpv_filter().begin(), raw.icmpv_filter().end());
    const bool six = entry.family() == AF_INET6;
    if (::setsockopt(fd, six ? int{IPPROTO_ICMPV6} : SOL_RAW, six ? kIcmpv6Filter : ICMP_FILTER, words.data(),
                     static_cast<socklen_t>(words.size() * sizeof words[0])) != 0) {
      return sys_fail("setsockopt(ICMP_FILTER)");
    }
  }
  return {};
}

Result<void> collect_tcp_options(int fd, const std::string& subject, pb::TcpOptsEntry& out) {
  FERRY_TRY(const auto cork, ask(fd, IPPROTO_TCP, TCP_CORK, subject));
  FERRY_TRY(const auto no_delay, ask(fd, IPPROTO_TCP, TCP_NODELAY, subject));
  FERRY_TRY(const auto count, ask(fd, IPPROTO_TCP, TCP_KEEPCNT, subject));
  FERRY_TRY(const auto idle, ask(fd, IPPROTO_TCP, TCP_KEEPIDLE, subject));
  FERRY_TRY(const auto interval, ask(fd, IPPROTO_TCP, TCP_KEEPINTVL, subject));
  out.set_cork(cork.value_or(0) != 0);
  out.set_nodelay(no_delay.value_or(0) != 0);
  if (count) {
    out.set_keepcnt(static_cast<std::uint32_t>(*count));
  }
  if (idle) {
    out.set_keepidle(static_cast<std::uint32_t>(*idle));
  }
  if (interval) {
    out.set_keepintvl(static_cast<std::uint32_t>(*interval));
  }
  return {};
}

Result<void> restore_tcp_options(int fd, const pb::TcpOptsEntry& entry) {
  FERRY_CHECK(put(fd, IPPROTO_TCP, TCP_NODELAY, entry.nodelay() ? 1 : 0, "TCP_NODELAY"));
  FERRY_CHECK(put(fd, IPPROTO_TCP, TCP_CORK, entry.cork() ? 1 : 0, "TCP_CORK"));
  if (entry.has_keepcnt()) {
    FERRY_CHECK(put(fd, IPPROTO_TCP, TCP_KEEPCNT, static_cast<int>(entry.keepcnt()), "TCP_KEEPCNT"));
  }
  if (entry.has_keepidle()) {
    FERRY_CHECK(put(fd, IPPROTO_TCP, TCP_KEEPIDLE, static_cast<int>(entry.keepidle()), "TCP_KEEPIDLE"));
  }
  if (entry.has_keepintvl()) {
    FERRY_CHECK(put(fd, IPPROTO_TCP, TCP_KEEPINTVL, static_cast<int>(entry.keepintvl()), "TCP_KEEPINTVL"));
  }
  return {};
}

}  // namespace ferry::state::inet_socket
