#include "state/net/net.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <string>

#include "image/proto/net.pb.h"
#include "state/dump_host.h"
#include "state/nsids/nsids.h"

namespace ferry::state::net {
namespace {

constexpr const char* kLoopback = "lo";

Result<UniqueFd> any_socket() {
  const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    return sys_fail("socket(AF_INET)");
  }
  return UniqueFd(fd);
}

ifreq request_for(const char* name) {
  ifreq request{};
  std::char_traits<char>::copy(request.ifr_name, name, std::char_traits<char>::length(name));
  return request;
}

Result<short> flags_of(int socket, const char* name) {
  ifreq request = request_for(name);
  if (::ioctl(socket, SIOCGIFFLAGS, &request) != 0) {
    return sys_fail(fmt::format("ioctl({}, SIOCGIFFLAGS)", name));
  }
  return request.ifr_flags;
}

// netdevice(7).  The kernel gives lo its addresses 127.0.0.1/8 and ::1/128 by itself.
Result<void> bring_up(const char* name) {
  FERRY_TRY(const UniqueFd socket, any_socket());
  FERRY_TRY(const short flags, flags_of(socket.get(), name));
  ifreq request = request_for(name);
  request.ifr_flags = static_cast<short>(flags | IFF_UP);
  if (::ioctl(socket.get(), SIOCSIFFLAGS, &request) != 0) {
    return sys_fail(fmt::format("ioctl({}, SIOCSIFFLAGS up)", name));
  }
  return {};
}

// A namespace that holds nothing but lo as the kernel makes it.
Result<pb::NetDeviceEntry> only_loopback(const std::string& subject) {
  struct FreeNames {
    void operator()(struct if_nameindex* list) const { ::if_freenameindex(list); }
  };
  const std::unique_ptr<struct if_nameindex, FreeNames> names(::if_nameindex());
  if (names == nullptr) {
    return sys_fail("if_nameindex");
  }
  for (const struct if_nameindex* at = names.get(); at->if_index != 0; ++at) {
    if (std::string_view(at->if_name) != kLoopback) {
      return fail(Kind::unsupported,
                  "{} lives in a network namespace with interface {}, which cannot be carried; use --empty-ns net and "
                  "connect it again, or declare the namespace external",
                  subject, std::string(at->if_name));
    }
  }
  struct FreeAddresses {
    void operator()(ifaddrs* list) const { ::freeifaddrs(list); }
  };
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) {
    return sys_fail("getifaddrs");
  }
  const std::unique_ptr<ifaddrs, FreeAddresses> addresses(raw);
  for (const ifaddrs* at = addresses.get(); at != nullptr; at = at->ifa_next) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    std::string_view usual;
    if (at->ifa_addr == nullptr) {
      continue;
    }
    if (at->ifa_addr->sa_family == AF_INET) {
      ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(at->ifa_addr)->sin_addr, text.data(), text.size());
      usual = "127.0.0.1";
    } else if (at->ifa_addr->sa_family == AF_INET6) {
      ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(at->ifa_addr)->sin6_addr, text.data(),
                  text.size());
      usual = "::1";
    } else {
      continue;
    }
    if (usual != text.data()) {
      return fail(Kind::unsupported,
                  "{} lives in a network namespace with address {} on {}, which cannot be carried; use --empty-ns net "
                  "or declare the namespace external",
                  subject, std::string(text.data()), std::string(at->ifa_name));
    }
  }
  FERRY_TRY(const UniqueFd socket, any_socket());
  FERRY_TRY(const short flags, flags_of(socket.get(), kLoopback));
  ifreq request = request_for(kLoopback);
  if (::ioctl(socket.get(), SIOCGIFMTU, &request) != 0) {
    return sys_fail("ioctl(lo, SIOCGIFMTU)");
  }
  pb::NetDeviceEntry lo;
  lo.set_type(pb::NDTYPE_LOOPBACK);
  lo.set_ifindex(::if_nametoindex(kLoopback));
  lo.set_mtu(static_cast<std::uint32_t>(request.ifr_mtu));
  lo.set_flags(static_cast<std::uint32_t>(static_cast<unsigned short>(flags)));
  lo.set_name(kLoopback);
  return lo;
}

Result<void> join_external(RestoreContext& context, const std::string& key) {
  for (const InheritFd& inherit : context.options.inherit_fds) {
    if (inherit.key != key) {
      continue;
    }
    // The skeleton still has our mounts, so our descriptor is a path for it.
    RestoreTask& root = context.root();
    tracee::Batch batch;
    const tracee::Value ns =
        batch.must("open(network namespace)", SYS_openat,
                   {AT_FDCWD, batch.string(fmt::format("/proc/{}/fd/{}", ::getpid(), inherit.fd)),
                    O_RDONLY | O_CLOEXEC, 0});
    batch.must("setns(CLONE_NEWNET)", SYS_setns, {ns, CLONE_NEWNET});
    batch.must("close", SYS_close, {ns});
    FERRY_CHECK(root.process.run(root.leader(), batch).during("joining network namespace {}", key));
    return {};
  }
  return fail(Kind::invalid, "the network namespace is external under the key {}, for which no descriptor was given",
              key);
}

}  // namespace

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::net)) {
    return {};
  }
  const DumpTask& root = context.root();
  const image::Name name{image::Type::netns, ids.id(NsKind::net)};
  FERRY_TRY(const std::uint64_t inode, namespace_inode(root.pid, "net"));
  if (const auto key = external_key(context.options, "net", std::to_string(inode))) {
    pb::NetnsEntry entry;
    entry.set_ext_key(*key);
    context.set.add(name, std::move(entry));
    return {};
  }
  if (context.options.empty_net_namespace) {
    return {};
  }
  const auto look = [&] { return only_loopback(root.subject()); };
  FERRY_TRY(pb::NetDeviceEntry lo, context.host.inside().get<pb::NetDeviceEntry>(look));
  context.set.add({image::Type::netdev, ids.id(NsKind::net)}, std::move(lo));
  context.set.add(name, pb::NetnsEntry());
  return {};
}

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::net)) {
    return {};
  }
  const auto list = context.set.list<pb::NetnsEntry>({image::Type::netns, ids.id(NsKind::net)});
  if (!list.empty() && list.front()->has_ext_key()) {
    return join_external(context, list.front()->ext_key());
  }
  bool loopback_up = true;
  for (const auto* device : context.set.list<pb::NetDeviceEntry>({image::Type::netdev, ids.id(NsKind::net)})) {
    if (device->type() != pb::NDTYPE_LOOPBACK) {
      return fail(Kind::unsupported, "the set has network interface {}, which ferry does not make", device->name());
    }
    loopback_up = (device->flags() & IFF_UP) != 0;
  }
  if (!loopback_up) {
    return {};
  }
  FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
  return context.inside.run([] { return bring_up(kLoopback); });
}

}  // namespace ferry::state::net
