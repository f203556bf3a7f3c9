#include "state/inet_socket/inet_socket.h"

#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>

#include "base/log.h"
#include "image/proto/inventory.pb.h"
#include "state/dump_host.h"
#include "state/inet_socket/collect_options.h"
#include "state/inet_socket/collect_tcp.h"
#include "state/inet_socket/datagrams.h"
#include "state/inet_socket/membership.h"
#include "state/nested/nested.h"
#include "state/socket/more_options.h"
#include "state/socket/options.h"
#include "state/tcp/tcp.h"

namespace ferry::state {
namespace {

using inet_socket::Endpoint;

constexpr std::uint32_t kMptcp = 262;  // IPPROTO_MPTCP, Linux 5.6

bool is_tcp(std::uint32_t protocol) { return protocol == IPPROTO_TCP || protocol == kMptcp; }

class InetSocketKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "Internet socket"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_INETSK; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    if (!S_ISSOCK(probe.stat.st_mode) || !probe.link.starts_with("socket:[")) {
      return false;
    }
    const auto domain = socket::get_int(probe.ours, SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN");
    return domain.has_value() && (*domain == AF_INET || *domain == AF_INET6);
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const std::string subject = probe.subject();
    FERRY_TRY(const Networks::Place* const network, context.host.networks().of_socket(subject, probe.ours, context));
    pb::InetSkEntry& entry = *out.mutable_isk();
    FERRY_TRY(const int family, socket::get_int(probe.ours, SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN"));
    FERRY_TRY(const int type, socket::get_int(probe.ours, SOL_SOCKET, SO_TYPE, "SO_TYPE"));
    FERRY_TRY(const int protocol, socket::get_int(probe.ours, SOL_SOCKET, SO_PROTOCOL, "SO_PROTOCOL"));
    entry.set_id(out.id());
    entry.set_ino(static_cast<std::uint32_t>(probe.stat.st_ino));
    entry.set_family(static_cast<std::uint32_t>(family));
    entry.set_type(static_cast<std::uint32_t>(type));
    entry.set_proto(static_cast<std::uint32_t>(protocol));
    entry.set_flags(probe.status_flags());
    entry.set_backlog(0);
    entry.set_ns_id(network->id);
    FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
    FERRY_CHECK(collect_addresses(probe, entry));
    if (is_tcp(entry.proto())) {
      entry.mutable_tcp_opts();
      FERRY_CHECK(tcp_.collect(probe, context, *network, entry));
      const bool connected =
          entry.state() != TCP_LISTEN && (entry.state() != TCP_CLOSE || entry.dst_port() != 0 || entry.has_shutdown());
      options_.add(entry, probe.ours, *network, connected, subject);
      return {};
    }
    if (type != SOCK_DGRAM && type != SOCK_RAW) {
      return fail(Kind::unsupported, "{}: sockets of type {} and protocol {} cannot be carried over", subject, type,
                  protocol);
    }
    options_.add(entry, probe.ours, *network, false, subject);
    FERRY_CHECK(memberships_.collect(probe.ours, *network, subject, entry));
    return collect_datagrams(probe, context, entry);
  }

  Result<void> finish(DumpContext& context) override {
    std::map<std::uint32_t, pb::InetSkEntry*> entries;
    for (const image::Entry& e : context.set.entries({image::Type::files})) {
      auto& file = static_cast<pb::FileEntry&>(*e.message);
      if (file.type() == pb::FD_INETSK) {
        entries[file.id()] = file.mutable_isk();
      }
    }
    FERRY_CHECK(options_.run(entries));
    return tcp_.finish(context, entries);
  }
  Result<void> before_end(DumpContext&) override { return tcp_.before_end(); }
  Result<void> before_going_on(DumpContext&) override { return tcp_.before_going_on(); }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::InetSkEntry& entry = file.isk();
    FERRY_TRY(UniqueFd given, socket::inherited(entry.ino(), context.options));
    if (given) {
      return given;
    }
    const std::string subject = subject_of(entry);
    FERRY_TRY(const bool closed, comes_back_closed(entry, context));
    FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
    FERRY_TRY(UniqueFd fd, inside->get<UniqueFd>([&] {
      return socket::make(static_cast<int>(entry.family()), static_cast<int>(entry.type()),
                          static_cast<int>(entry.proto()));
    }));
    FERRY_CHECK(socket::restore_plain_options(fd.get(), entry.opts(), subject));
    FERRY_CHECK(inet_socket::restore_ip_options(fd.get(), entry).during("{}", subject));
    FERRY_CHECK(socket::restore_more(fd.get(), entry.ferry_options(), true, subject));
    if (entry.has_tcp_opts()) {
      FERRY_CHECK(inet_socket::restore_tcp_options(fd.get(), entry.tcp_opts()).during("{}", subject));
    }
    if (closed) {
      return fd;
    }
    FERRY_TRY(Endpoint source, Endpoint::from_image(entry.family(), entry.src_port(), entry.src_addr()));
    if (source.port != 0 || !source.is_any()) {
      FERRY_CHECK(socket::prepare_bind(fd.get(), entry.opts(), subject));
      if (inet_socket::is_connection(entry)) {
        FERRY_CHECK(connections_.begin(fd.get(), entry, subject));
      }
      FERRY_CHECK(bind(fd.get(), source, entry, *inside));
    }
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    const pb::InetSkEntry& entry = file.isk();
    const std::string subject = subject_of(entry);
    FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
    FERRY_TRY(const UniqueFd given, socket::inherited(entry.ino(), context.options));
    FERRY_TRY(const bool closed, comes_back_closed(entry, context));
    if (!given && closed) {
      // tcp(7) has no state for it but "not connected"; shutdown(2) says so and marks both directions,
      // so that the program reads the end of file and cannot write.
      if (::shutdown(fd, SHUT_RDWR) != 0 && errno != ENOTCONN) {
        return sys_fail(fmt::format("shutdown({})", subject));
      }
    } else if (!given && entry.state() == TCP_LISTEN) {
      if (::listen(fd, static_cast<int>(entry.backlog())) != 0) {
        return sys_fail(fmt::format("listen({})", subject));
      }
    } else if (!given && inet_socket::is_connection(entry)) {
      tcp::Peers peers;
      FERRY_TRY(peers.local, Endpoint::from_image(entry.family(), entry.src_port(), entry.src_addr()));
      FERRY_TRY(peers.remote, Endpoint::from_image(entry.family(), entry.dst_port(), entry.dst_addr()));
      FERRY_CHECK(add_scope(peers.local, entry, *inside));
      FERRY_CHECK(add_scope(peers.remote, entry, *inside));
      FERRY_CHECK(connections_.connect(fd, entry, peers, context.set, *inside));
    } else if (!given && is_tcp(entry.proto()) && context.set.has({image::Type::tcp_stream, entry.ino()})) {
      FERRY_CHECK(connections_.end(fd, entry, context.set, *inside));
    } else if (!given && entry.dst_port() != 0) {
      FERRY_CHECK(inet_socket::restore_datagrams(fd, subject, entry, context.set, injector_, *inside));
      FERRY_CHECK(connect_datagrams(fd, entry, *inside));
    } else if (!given) {
      FERRY_CHECK(inet_socket::restore_datagrams(fd, subject, entry, context.set, injector_, *inside));
      FERRY_CHECK(shut_down(fd, entry));
    }
    // bind(2) and listen(2) wanted it set; a connection does until it leaves repair mode.
    if (!given && !inet_socket::is_connection(entry)) {
      FERRY_CHECK(socket::set_int(fd, SOL_SOCKET, SO_REUSEADDR, entry.opts().reuseaddr() ? 1 : 0, "SO_REUSEADDR"));
    }
    if (!given) {
      FERRY_CHECK(inet_socket::restore_memberships(fd, entry, subject, *inside));
      FERRY_CHECK(socket::restore_more(fd, entry.ferry_options(), false, subject));
      if (entry.opts().has_so_priority()) {  // IP_TOS has changed it
        FERRY_CHECK(
            socket::set_int(fd, SOL_SOCKET, SO_PRIORITY, static_cast<int>(entry.opts().so_priority()), "SO_PRIORITY"));
      }
      FERRY_CHECK(socket::restore_filter(fd, entry.opts(), subject));
    }
    FERRY_CHECK(restore_status_flags(fd, entry.flags()));
    return restore_fown(fd, entry.fown(), context);
  }

  Result<void> resume(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    const pb::InetSkEntry& entry = file.isk();
    if (!inet_socket::is_connection(entry)) {
      return {};
    }
    FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
    FERRY_CHECK(connections_.resume(fd, entry, *inside));
    return entry.state() != TCP_SYN_SENT ? shut_down(fd, entry) : Result<void>();
  }

 private:
  static std::string subject_of(const pb::InetSkEntry& entry) {
    const auto source = Endpoint::from_image(entry.family(), entry.src_port(), entry.src_addr());
    return fmt::format("{} socket {}", is_tcp(entry.proto()) ? "TCP" : "datagram",
                       source.has_value() ? source->text() : std::string("without address"));
  }

  // --- checkpoint
  static Result<void> collect_addresses(const FdProbe& probe, pb::InetSkEntry& entry) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    if (::getsockname(probe.ours, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      return sys_fail(fmt::format("getsockname({})", probe.subject()));
    }
    FERRY_TRY(const Endpoint source, Endpoint::from(address));
    // A raw socket shows its protocol in the place of the port.
    entry.set_src_port(entry.type() == SOCK_RAW ? 0 : source.port);
    for (const std::uint32_t word : source.words) {
      entry.add_src_addr(word);
    }
    Endpoint destination = source;
    destination.port = 0;
    destination.words.assign(source.words.size(), 0);
    size = sizeof address;
    if (::getpeername(probe.ours, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
      FERRY_TRY(destination, Endpoint::from(address));
    } else if (errno != ENOTCONN && errno != EINVAL) {
      return sys_fail(fmt::format("getpeername({})", probe.subject()));
    }
    entry.set_dst_port(destination.port);
    for (const std::uint32_t word : destination.words) {
      entry.add_dst_addr(word);
    }
    const std::uint32_t scope = source.scope != 0 ? source.scope : destination.scope;
    return scope == 0 ? Result<void>() : collect_scope(probe, scope, entry);
  }

  // The interface's name, in the socket's network namespace, which SIOCGIFNAME of any of its sockets asks.
  static Result<void> collect_scope(const FdProbe& probe, std::uint32_t index, pb::InetSkEntry& entry) {
    ifreq request{};
    request.ifr_ifindex = static_cast<int>(index);
    if (::ioctl(probe.ours, SIOCGIFNAME, &request) != 0) {
      return sys_fail(fmt::format("ioctl({}, SIOCGIFNAME, {})", probe.subject(), index));
    }
    entry.set_ifname(request.ifr_name);
    return {};
  }

  static Result<void> collect_datagrams(const FdProbe& probe, DumpContext& context, pb::InetSkEntry& entry) {
    entry.set_state(entry.dst_port() != 0 ? TCP_ESTABLISHED : TCP_CLOSE);
    FERRY_CHECK(inet_socket::save_datagrams(probe.ours, probe.subject(), entry, context.set));
    struct pollfd p {};
    p.fd = probe.ours;
    p.events = POLLRDHUP;
    if (::poll(&p, 1, 0) < 0) {
      return sys_fail(fmt::format("poll({})", probe.subject()));
    }
    if ((p.revents & POLLHUP) != 0) {
      entry.set_shutdown(pb::SKSHUT_BOTH);
    } else if ((p.revents & POLLRDHUP) != 0) {
      entry.set_shutdown(pb::SKSHUT_READ);
    }
    return {};
  }

  // --- restore
  // What --tcp-close at the dump or now makes of a connection.
  static Result<bool> comes_back_closed(const pb::InetSkEntry& entry, const RestoreContext& context) {
    if (!is_tcp(entry.proto()) || entry.state() == TCP_LISTEN ||
        (entry.dst_port() == 0 && !tcp::has_peer(entry.state()))) {
      return false;
    }
    FERRY_TRY(const auto* inventory, context.set.one<pb::InventoryEntry>({image::Type::inventory}));
    if (entry.state() == TCP_CLOSE || context.options.tcp_close || inventory->tcp_close()) {
      return true;
    }
    if (!context.options.tcp_established) {
      return fail(Kind::unsupported,
                  "{}: an established TCP connection; --tcp-established keeps it, --tcp-close closes it",
                  subject_of(entry));
    }
    return false;
  }

  static Result<void> add_scope(Endpoint& endpoint, const pb::InetSkEntry& entry, Inside& inside) {
    if (entry.ifname().empty()) {
      return {};
    }
    FERRY_TRY(endpoint.scope, inside.get<std::uint32_t>([&]() -> Result<std::uint32_t> {
      const unsigned index = ::if_nametoindex(entry.ifname().c_str());
      if (index == 0) {
        return sys_fail(fmt::format("if_nametoindex({})", entry.ifname()));
      }
      return index;
    }));
    return {};
  }

  static Result<void> bind(int fd, Endpoint source, const pb::InetSkEntry& entry, Inside& inside) {
    FERRY_CHECK(add_scope(source, entry, inside));
    const sockaddr_storage address = source.to_sockaddr();
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), source.size()) != 0) {
      return sys_fail(fmt::format("bind({})", source.text()));
    }
    return {};
  }

  static Result<void> connect_datagrams(int fd, const pb::InetSkEntry& entry, Inside& inside) {
    FERRY_TRY(Endpoint peer, Endpoint::from_image(entry.family(), entry.dst_port(), entry.dst_addr()));
    FERRY_CHECK(add_scope(peer, entry, inside));
    const sockaddr_storage address = peer.to_sockaddr();
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), peer.size()) != 0) {
      return sys_fail(fmt::format("connect({} -> {})", subject_of(entry), peer.text()));
    }
    return shut_down(fd, entry);
  }

  // A socket that is not connected takes the mark as well, and says that it is not connected.
  static Result<void> shut_down(int fd, const pb::InetSkEntry& entry) {
    constexpr int how[] = {-1, SHUT_RD, SHUT_WR, SHUT_RDWR};
    if (entry.shutdown() != pb::SKSHUT_NONE && ::shutdown(fd, how[entry.shutdown()]) != 0 && errno != ENOTCONN) {
      return sys_fail(fmt::format("shutdown({})", subject_of(entry)));
    }
    return {};
  }

  inet_socket::TcpCollector tcp_;
  inet_socket::OptionsCollector options_;
  inet_socket::MembershipReader memberships_;
  inet_socket::Injector injector_;
  tcp::Restorer connections_;
};

}  // namespace

std::unique_ptr<FileKind> make_inet_socket_kind() { return std::make_unique<InetSocketKind>(); }

}  // namespace ferry::state
