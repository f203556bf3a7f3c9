#include "state/netlink_socket/netlink_socket.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <cerrno>

#include "state/dump_host.h"
#include "state/nested/nested.h"
#include "state/socket/more_options.h"
#include "state/socket/options.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

constexpr std::uint32_t kClosed = 7;  // tcp(7)'s number for a socket without a peer
constexpr std::uint32_t kConnected = 1;

class NetlinkSocketKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "netlink socket"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_NETLINKSK; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    if (!S_ISSOCK(probe.stat.st_mode) || !probe.link.starts_with("socket:[")) {
      return false;
    }
    const auto domain = socket::get_int(probe.ours, SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN");
    return domain.has_value() && *domain == AF_NETLINK;
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const std::string subject = probe.subject();
    FERRY_TRY(const Networks::Place* const network, context.host.networks().of_socket(subject, probe.ours, context));
    FERRY_CHECK(check_queue(probe));
    FERRY_TRY(const int protocol, socket::get_int(probe.ours, SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL"));
    pb::NetlinkSkEntry& entry = *out.mutable_nlsk();
    entry.set_id(out.id());
    entry.set_ino(static_cast<std::uint32_t>(probe.stat.st_ino));
    entry.set_protocol(static_cast<std::uint32_t>(protocol));
    entry.set_flags(probe.status_flags());
    entry.set_ns_id(network->id);
    sockaddr_nl own{}, peer{};
    socklen_t size = sizeof own;
    if (::getsockname(probe.ours, reinterpret_cast<sockaddr*>(&own), &size) != 0) {
      return sys_fail(fmt::format("getsockname({})", subject));
    }
    size = sizeof peer;
    if (::getpeername(probe.ours, reinterpret_cast<sockaddr*>(&peer), &size) != 0) {
      return sys_fail(fmt::format("getpeername({})", subject));
    }
    entry.set_portid(own.nl_pid);
    if (own.nl_groups != 0) {
      entry.add_groups(own.nl_groups);
    }
    entry.set_dst_portid(peer.nl_pid);
    entry.set_dst_group(peer.nl_groups);
    entry.set_state(peer.nl_pid != 0 || peer.nl_groups != 0 ? kConnected : kClosed);
    FERRY_CHECK(collect_groups(probe, entry));
    FERRY_TRY(const int type, socket::get_int(probe.ours, SOL_SOCKET, SO_TYPE, "SO_TYPE"));
    entry.set_ferry_type(static_cast<std::uint32_t>(type));
    FERRY_CHECK(more_.prepare(probe.ours, *network, subject));
    FERRY_CHECK(more_.collect(probe.ours, *network, false, *entry.mutable_ferry_options()));
    FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
    return socket::collect_options(probe.ours, subject, *entry.mutable_opts());
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::NetlinkSkEntry& entry = file.nlsk();
    FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
    FERRY_TRY(UniqueFd fd, inside->get<UniqueFd>([&]() -> Result<UniqueFd> {
      const int type = entry.has_ferry_type() ? static_cast<int>(entry.ferry_type()) : SOCK_RAW;
      UniqueFd made(::socket(AF_NETLINK, type | SOCK_CLOEXEC, static_cast<int>(entry.protocol())));
      if (!made) {
        return sys_fail(fmt::format("socket(AF_NETLINK, protocol {})", entry.protocol()));
      }
      return made;
    }));
    const std::uint32_t groups = entry.groups_size() >= 1 ? entry.groups(0) : 0;
    if (entry.portid() != 0 || groups != 0) {
      sockaddr_nl own{};
      own.nl_family = AF_NETLINK;
      own.nl_pid = entry.portid();
      own.nl_groups = groups;
      if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0) {
        return sys_fail(fmt::format("bind(netlink protocol {}, port {})", entry.protocol(), entry.portid()));
      }
    }
    if (entry.state() == kConnected) {
      sockaddr_nl peer{};
      peer.nl_family = AF_NETLINK;
      peer.nl_pid = entry.dst_portid();
      peer.nl_groups = entry.dst_group();
      if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&peer), sizeof peer) != 0) {
        return sys_fail(fmt::format("connect(netlink protocol {}, port {})", entry.protocol(), entry.dst_portid()));
      }
    }
    FERRY_CHECK(socket::restore_options(fd.get(), entry.opts(), fmt::format("netlink socket {}", entry.ino())));
    for (int group = 32; group < 32 * entry.groups_size(); ++group) {  // sets of CRIU have all words here
      if ((entry.groups(group / 32) >> group % 32 & 1) != 0) {
        FERRY_CHECK(join(fd.get(), static_cast<std::uint32_t>(group) + 1));
      }
    }
    for (const std::uint32_t group : entry.ferry_more_groups()) {
      FERRY_CHECK(join(fd.get(), group));
    }
    FERRY_CHECK(
        socket::restore_more(fd.get(), entry.ferry_options(), false, fmt::format("netlink socket {}", entry.ino())));
    FERRY_CHECK(restore_status_flags(fd.get(), entry.flags()));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restore_fown(fd, file.nlsk().fown(), context);
  }

 private:
  static Result<void> check_queue(const FdProbe& probe) {
    char byte = 0;
    if (::recv(probe.ours, &byte, 1, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC) >= 0) {
      return fail(Kind::unsupported,
                  "{}: it has messages that were not read yet, which only the kernel could send again",
                  probe.subject());
    }
    if (errno != EAGAIN) {
      return sys_fail(fmt::format("recv({}, MSG_PEEK)", probe.subject()));
    }
    return {};
  }

  static Result<void> join(int fd, std::uint32_t group) {
    return socket::set_int(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, static_cast<int>(group), "NETLINK_ADD_MEMBERSHIP");
  }

  // getsockname(2) shows the first 32 groups only (netlink(7), NETLINK_LIST_MEMBERSHIPS).
  static Result<void> collect_groups(const FdProbe& probe, pb::NetlinkSkEntry& entry) {
    std::uint32_t words[64] = {};
    socklen_t size = sizeof words;
    if (::getsockopt(probe.ours, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &size) != 0) {
      return sys_fail(fmt::format("getsockopt({}, NETLINK_LIST_MEMBERSHIPS)", probe.subject()));
    }
    for (std::uint32_t i = 32; i < 32 * sizeof words / sizeof words[0]; ++i) {
      if ((words[i / 32] >> i % 32 & 1) != 0) {
        entry.add_ferry_more_groups(i + 1);  // groups count from 1
      }
    }
    return {};
  }

  socket::MoreOptionsReader more_;
};

}  // namespace

std::unique_ptr<FileKind> make_netlink_socket_kind() { return std::make_unique<NetlinkSocketKind>(); }

}  // namespace ferry::state
