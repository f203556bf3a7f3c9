#include <fcntl.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/net_namespace.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <set>

#include "state/net/bridge_port.h"
#include "state/net/links.h"
#include "state/net/message.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"
#include "sys/netlink.h"

#ifndef TUNSETIFINDEX
#define TUNSETIFINDEX _IOW('T', 218, unsigned int)
#endif

namespace ferry::state::net {
namespace {

constexpr std::uint32_t kSettable =
    IFF_UP | IFF_NOARP | IFF_PROMISC | IFF_ALLMULTI | IFF_MULTICAST | IFF_DEBUG | IFF_DYNAMIC;

// What a link tells and does not want to be told (br_policy, macvlan_policy in the kernel).
bool is_told_only(const std::string& kind, std::uint16_t type) {
  if (kind == "bridge") {
    return (type >= IFLA_BR_ROOT_ID && type <= IFLA_BR_GC_TIMER) || type == IFLA_BR_FDB_FLUSH || type == IFLA_BR_PAD ||
           type >= IFLA_BR_MCAST_QUERIER_STATE;
  }
  if (kind == "macvlan" || kind == "macvtap") {
    return type == IFLA_MACVLAN_MACADDR_COUNT || type == IFLA_MACVLAN_MACADDR_DATA ||
           type == IFLA_MACVLAN_BC_QUEUE_LEN_USED;
  }
  return false;
}

Result<void> send(std::uint16_t type, std::uint16_t flags, const Message& message, const std::string& subject) {
  FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_ROUTE));
  return netlink.request(type, static_cast<std::uint16_t>(NLM_F_ACK | flags), message.bytes(), subject,
                         [](Bytes) -> Result<void> { return {}; });
}

Bytes link_of(const pb::NetDeviceEntry& device) {
  return std::as_bytes(std::span(device.ferry_link().data(), device.ferry_link().size()));
}

ifinfomsg number_head(const pb::NetDeviceEntry& device) {
  ifinfomsg head{};
  head.ifi_index = static_cast<int>(device.ifindex());
  return head;
}

std::string kind_of(const pb::NetDeviceEntry& device) {
  switch (device.type()) {
    case pb::NDTYPE_VETH:
      return "veth";
    case pb::NDTYPE_BRIDGE:
      return "bridge";
    case pb::NDTYPE_MACVLAN:
      return "macvlan";
    case pb::NDTYPE_SIT:
      return "sit";
    default:
      break;
  }
  const auto info = find(after_head<ifinfomsg>(link_of(device)), IFLA_LINKINFO);
  return info.has_value() ? text_of(find(attributes_of(info->value), IFLA_INFO_KIND)) : std::string();
}

// Name, address and sizes.  Without its link: the sets of CRIU say less.
void put_common(Message& message, const pb::NetDeviceEntry& device, bool address) {
  message.put_text(IFLA_IFNAME, device.name());
  if (device.mtu() != 0) {
    message.put_number<std::uint32_t>(IFLA_MTU, device.mtu());
  }
  if (address && !device.address().empty()) {
    message.put(IFLA_ADDRESS, std::as_bytes(std::span(device.address().data(), device.address().size())));
  }
  for (const Attribute& a : after_head<ifinfomsg>(link_of(device))) {
    if (a.type == IFLA_TXQLEN || a.type == IFLA_GROUP || a.type == IFLA_NUM_TX_QUEUES || a.type == IFLA_NUM_RX_QUEUES) {
      message.put(a);
    }
  }
}

// Of a bridge's switches those that are on: a kernel refuses to switch off what it cannot do at all.
void put_switches(Message& message, const Attribute& told) {
  auto switches = value_as<br_boolopt_multi>(told);
  if (switches.has_value() && switches->optval != 0) {
    switches->optmask = switches->optval;
    message.put_number(IFLA_BR_MULTI_BOOLOPT, *switches);
  }
}

void put_kind(Message& message, const pb::NetDeviceEntry& device, const std::string& kind) {
  message.nest(IFLA_LINKINFO, [&] {
    message.put_text(IFLA_INFO_KIND, kind);
    const auto info = find(after_head<ifinfomsg>(link_of(device)), IFLA_LINKINFO);
    const auto data = info.has_value() ? find(attributes_of(info->value), IFLA_INFO_DATA) : std::nullopt;
    if (data.has_value()) {
      message.nest(IFLA_INFO_DATA, [&] {
        for (const Attribute& a : attributes_of(data->value)) {
          if (kind == "bridge" && a.type == IFLA_BR_MULTI_BOOLOPT) {
            put_switches(message, a);
          } else if (kind == "bridge" && a.type == IFLA_BR_VLAN_FILTERING &&
                     value_as<std::uint8_t>(a).value_or(0) == 0) {
            continue;  // off anyway, and a kernel without it does not take even that
          } else if (kind == "vxlan" && a.type == IFLA_VXLAN_TTL_INHERIT) {
            // Told as a number, and to be said as a flag (vxlan_policy).
            if (value_as<std::uint8_t>(a).value_or(0) != 0) {
              message.put(a.type, {});
            }
          } else if (kind == "vxlan" && a.type == IFLA_VXLAN_REMCSUM_RX && value_as<std::uint8_t>(a).value_or(0) == 0) {
            continue;  // to hear of it, even that it is off, is use of its bits of the header to the kernel
          } else if (!is_told_only(kind, a.type)) {
            message.put(a);
          }
        }
      });
    } else if (device.has_macvlan()) {
      message.nest(IFLA_INFO_DATA, [&] {
        message.put_number<std::uint32_t>(IFLA_MACVLAN_MODE, device.macvlan().mode());
        message.put_number<std::uint16_t>(IFLA_MACVLAN_FLAGS, static_cast<std::uint16_t>(device.macvlan().flags()));
      });
    }
  });
}

// The link of the same namespace that it is made above; 0: none.
std::uint32_t lower_of(const pb::NetDeviceEntry& device, const std::string& kind) {
  if (kind == "vxlan") {  // which tells it only here
    const auto info = find(after_head<ifinfomsg>(link_of(device)), IFLA_LINKINFO);
    const auto data = info.has_value() ? find(attributes_of(info->value), IFLA_INFO_DATA) : std::nullopt;
    return data.has_value() ? value_as<std::uint32_t>(find(attributes_of(data->value), IFLA_VXLAN_LINK)).value_or(0)
                            : 0;
  }
  return device.peer_ifindex() != device.ifindex() ? device.peer_ifindex() : 0;
}

// Its peer or lower link is in another namespace that is not in the set.
bool has_foreign_peer(const pb::NetDeviceEntry& device) {
  return !device.has_peer_nsid() && has_peer_elsewhere(device);
}

bool has_hardware_address(const pb::NetDeviceEntry& device) {
  const auto head = head_of<ifinfomsg>(link_of(device));
  return !head.has_value() || head->ifi_type == 1 /* ARPHRD_ETHER */;
}

// tun: Documentation/networking/tuntap.rst.  The device is the namespace's of whoever opens the file.
Result<void> make_tun(const pb::NetDeviceEntry& device, int dev) {
  FERRY_TRY(const UniqueFd file, sys::open_at(dev, "net/tun", O_RDWR));
  unsigned number = device.ifindex();
  ifreq request{};
  device.name().copy(request.ifr_name, sizeof request.ifr_name - 1);
  request.ifr_flags = static_cast<short>(device.tun().flags() & ~std::uint32_t{IFF_PERSIST});
  if (::ioctl(file.get(), TUNSETIFINDEX, &number) != 0 || ::ioctl(file.get(), TUNSETIFF, &request) != 0) {
    return sys_fail(fmt::format("ioctl(TUNSETIFF {})", device.name()));
  }
  if ((device.tun().owner() >= 0 && ::ioctl(file.get(), TUNSETOWNER, device.tun().owner()) != 0) ||
      (device.tun().group() >= 0 && ::ioctl(file.get(), TUNSETGROUP, device.tun().group()) != 0) ||
      ::ioctl(file.get(), TUNSETPERSIST, 1) != 0) {  // until its own descriptors are there (state/tun)
    return sys_fail(fmt::format("ioctl(TUNSETPERSIST {})", device.name()));
  }
  const int header = static_cast<int>(device.tun().vnethdr());
  if (header > 0 && ::ioctl(file.get(), TUNSETVNETHDRSZ, &header) != 0) {
    return sys_fail(fmt::format("ioctl(TUNSETVNETHDRSZ {})", device.name()));
  }
  Message message(number_head(device));
  put_common(message, device, (device.tun().flags() & IFF_TAP) != 0);
  return send(RTM_NEWLINK, 0, message, fmt::format("interface {}", device.name()));
}

Result<int> index_of(const std::string& name) {
  const unsigned index = ::if_nametoindex(name.c_str());
  if (index == 0) {
    return sys_fail(fmt::format("if_nametoindex({})", name));
  }
  return static_cast<int>(index);
}

}  // namespace

Result<void> restore_numbers(const pb::NetnsEntry& entry, const std::function<int(std::uint32_t)>& fd_of) {
  for (const pb::NetnsId& known : entry.nsids()) {
    const int fd = fd_of(known.target_ns_id());
    if (fd < 0) {
      continue;
    }
    Message message(rtgenmsg{});
    message.put_number<std::uint32_t>(NETNSA_FD, static_cast<std::uint32_t>(fd));
    message.put_number<std::int32_t>(NETNSA_NSID, known.netnsid_value());
    auto set = send(RTM_NEWNSID, 0, message, "namespace number");
    if (!set.has_value() && set.error().os_errno != EEXIST) {
      return set;
    }
  }
  return {};
}

std::optional<std::string> Links::outer_name(const std::string& kind, const std::string& name) const {
  if (auto key = external_key(options_, kind, name)) {
    return key;
  }
  for (const std::string& pair : options_.veth_pairs) {
    if (kind == "veth" && pair.starts_with(name + "=")) {
      return pair.substr(name.size() + 1);
    }
  }
  return std::nullopt;
}

// Both ends of a veth are made at once, wherever the other one is.
Result<void> Links::make_pair(Where& where, const pb::NetDeviceEntry& device) {
  const pb::NetDeviceEntry* peer = nullptr;
  const Where* there = nullptr;
  for (const Where& other : where_) {
    for (const pb::NetDeviceEntry* candidate : other.devices) {
      const bool meant = device.has_peer_nsid() && device.peer_nsid() == other.id;
      if (meant && candidate != &device && candidate->type() == pb::NDTYPE_VETH &&
          candidate->ifindex() == device.peer_ifindex()) {
        peer = candidate;
        there = &other;
      }
    }
  }
  std::string outer, bridge;
  if (peer == nullptr) {
    const auto named = outer_name("veth", device.name());
    if (!named.has_value()) {
      return fail(Kind::invalid,
                  "interface {} is one end of a veth pair whose other end is outside of the tree; name it "
                  "(--external veth[{}]:NAME or NAME@BRIDGE)",
                  device.name(), device.name());
    }
    outer = named->substr(0, named->find('@'));
    bridge = named->find('@') == std::string::npos ? "" : named->substr(named->find('@') + 1);
  }
  Message message(number_head(device));
  put_common(message, device, true);
  message.nest(IFLA_LINKINFO, [&] {
    message.put_text(IFLA_INFO_KIND, "veth");
    message.nest(IFLA_INFO_DATA, [&] {
      message.nest(VETH_INFO_PEER, [&] {
        message.put_head(peer != nullptr ? number_head(*peer) : ifinfomsg{});
        if (peer != nullptr) {
          put_common(message, *peer, true);
        } else {
          message.put_text(IFLA_IFNAME, outer);
        }
        const int ns = peer != nullptr ? there->ns : host_ns_;
        message.put_number<std::uint32_t>(IFLA_NET_NS_FD, static_cast<std::uint32_t>(ns));
      });
    });
  });
  FERRY_CHECK(where.inside->run([&] {
    return send(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message, fmt::format("interface {}", device.name()));
  }));
  if (peer != nullptr) {
    made_.insert(peer);
    return {};
  }
  if (!bridge.empty()) {
    FERRY_TRY(const int port, index_of(outer));
    FERRY_TRY(const int master, index_of(bridge));
    ifinfomsg head{};
    head.ifi_index = port;
    head.ifi_flags = IFF_UP;
    head.ifi_change = IFF_UP;
    Message join(head);
    join.put_number<std::uint32_t>(IFLA_MASTER, static_cast<std::uint32_t>(master));
    return send(RTM_NEWLINK, 0, join, fmt::format("interface {} of bridge {}", outer, bridge));
  }
  return {};
}

// Made from our side, above one of our links, and sent over.
Result<void> Links::make_outside(Where& where, const pb::NetDeviceEntry& device, const std::string& lower) {
  FERRY_TRY(const int index, index_of(lower));
  Message message(number_head(device));
  put_common(message, device, true);
  message.put_number<std::uint32_t>(IFLA_LINK, static_cast<std::uint32_t>(index));
  message.put_number<std::uint32_t>(IFLA_NET_NS_FD, static_cast<std::uint32_t>(where.ns));
  put_kind(message, device, kind_of(device));
  return send(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message,
              fmt::format("interface {} above {}", device.name(), lower));
}

// False if it has to wait for another one.
Result<bool> Links::make_one(Where& where, const pb::NetDeviceEntry& device) {
  const std::string subject = fmt::format("interface {}", device.name());
  switch (device.type()) {
    case pb::NDTYPE_LOOPBACK: {
      Message message(number_head(device));
      put_common(message, device, false);
      FERRY_CHECK(where.inside->run([&] { return send(RTM_NEWLINK, 0, message, subject); }));
      return true;
    }
    case pb::NDTYPE_VETH:
      FERRY_CHECK(make_pair(where, device));
      return true;
    case pb::NDTYPE_TUN: {
      FERRY_TRY(const UniqueFd dev, sys::open("/dev", O_PATH | O_DIRECTORY));
      FERRY_CHECK(where.inside->run([&] { return make_tun(device, dev.get()); }));
      return true;
    }
    case pb::NDTYPE_EXTLINK: {
      const auto outer = outer_name("netdev", device.name());
      if (!outer.has_value()) {
        return fail(Kind::invalid,
                    "{} is a device of the host, for which no name was given (--external netdev[{}]:NAME)", subject,
                    device.name());
      }
      FERRY_TRY(const int index, index_of(*outer));
      ifinfomsg head{};
      head.ifi_index = index;
      Message message(head);
      message.put_text(IFLA_IFNAME, device.name());
      message.put_number<std::uint32_t>(IFLA_NET_NS_FD, static_cast<std::uint32_t>(where.ns));
      FERRY_CHECK(send(RTM_NEWLINK, 0, message, subject));
      return true;
    }
    default:
      break;
  }
  const std::string kind = kind_of(device);
  if (kind.empty()) {
    return fail(Kind::unsupported, "{} is of a kind ({}) that ferry does not make", subject,
                static_cast<int>(device.type()));
  }
  if (has_foreign_peer(device) ||
      (device.type() == pb::NDTYPE_MACVLAN && outer_name("macvlan", device.name()).has_value())) {
    const auto lower = outer_name(kind, device.name());
    if (!lower.has_value()) {
      return fail(Kind::invalid,
                  "{} hangs on one outside of the tree, for which no name was given (--external {}[{}]:NAME)", subject,
                  kind, device.name());
    }
    FERRY_CHECK(make_outside(where, device, *lower));
    return true;
  }
  const std::uint32_t lower = lower_of(device, kind);
  if (lower != 0) {
    const bool there = std::any_of(where.devices.begin(), where.devices.end(), [&](const auto* other) {
      return other->ifindex() == lower && made_.contains(other);
    });
    if (!there) {
      return false;
    }
  }
  Message message(number_head(device));
  put_common(message, device, has_hardware_address(device));
  if (lower != 0) {
    message.put_number<std::uint32_t>(IFLA_LINK, lower);
  }
  put_kind(message, device, kind);
  const auto make = [&]() -> Result<void> {
    // Tunnels without a name of their own (sit0) come with the namespace.
    const bool there = ::if_nametoindex(device.name().c_str()) == device.ifindex();
    return send(RTM_NEWLINK, there ? 0 : NLM_F_CREATE | NLM_F_EXCL, message, subject);
  };
  FERRY_CHECK(where.inside->run(make));
  return true;
}

Result<void> Links::make() {
  for (bool waiting = true; waiting;) {
    waiting = false;
    bool progress = false;
    for (Where& where : where_) {
      for (const pb::NetDeviceEntry* device : where.devices) {
        if (made_.contains(device)) {
          continue;
        }
        FERRY_TRY(const bool done, make_one(where, *device));
        if (done) {
          made_.insert(device);
        }
        progress = progress || done;
        waiting = waiting || !done;
      }
    }
    if (waiting && !progress) {
      return fail(Kind::corrupt, "netdev: interfaces hang on others that are not in the set");
    }
  }
  return {};
}

Result<void> Links::set_up() {
  for (Where& where : where_) {
    // A bridge numbers its ports as they come.
    std::vector<const pb::NetDeviceEntry*> devices = where.devices;
    std::stable_sort(devices.begin(), devices.end(),
                     [](const auto* a, const auto* b) { return port_number(link_of(*a)) < port_number(link_of(*b)); });
    for (const pb::NetDeviceEntry* device : devices) {
      ifinfomsg head = number_head(*device);
      head.ifi_flags = device->flags() & kSettable;
      head.ifi_change = kSettable & ~std::uint32_t{IFF_MULTICAST | IFF_DYNAMIC};
      Message message(head);
      for (const Attribute& a : after_head<ifinfomsg>(link_of(*device))) {
        if (a.type == IFLA_IFALIAS) {
          message.put(a);
        }
      }
      if (device->master() != 0) {
        message.put_number<std::uint32_t>(IFLA_MASTER, device->master());
      }
      FERRY_CHECK(where.inside->run(
          [&] { return send(RTM_NEWLINK, 0, message, fmt::format("interface {}", device->name())); }));
    }
    for (const pb::NetDeviceEntry* device : devices) {
      if (const auto settings = port_settings(number_head(*device), link_of(*device)); settings.has_value()) {
        FERRY_CHECK(where.inside->run(
            [&] { return send(RTM_NEWLINK, 0, *settings, fmt::format("bridge port {}", device->name())); }));
      }
    }
  }
  return {};
}

}  // namespace ferry::state::net
