#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/net_namespace.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <string>

#include "state/net/links.h"
#include "state/net/message.h"
#include "state/nsids/nsids.h"
#include "state/tun/tun.h"
#include "sys/netlink.h"

namespace ferry::state::net {
namespace {

// The attributes of a link that making one takes.
const std::set<std::uint16_t>& kept() {
  static const std::set<std::uint16_t> kKept = {
      IFLA_IFNAME,       IFLA_ADDRESS,       IFLA_BROADCAST,     IFLA_MTU,          IFLA_LINK,
      IFLA_LINK_NETNSID, IFLA_MASTER,        IFLA_TXQLEN,        IFLA_GROUP,        IFLA_IFALIAS,
      IFLA_LINKINFO,     IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_GSO_MAX_SIZE, IFLA_GSO_MAX_SEGS};
  return kKept;
}

std::uint8_t number8(const std::vector<Attribute>& data, std::uint16_t type) {
  return value_as<std::uint8_t>(find(data, type)).value_or(0);
}

// `context`, `network`: where its queues are known.
Result<void> describe_tun(const std::vector<Attribute>& data, const DumpContext& context, std::uint32_t network,
                          pb::NetDeviceEntry& out) {
  const bool persistent = number8(data, IFLA_TUN_PERSIST) != 0;
  const int queue = tun::queue_of(context, network, out.name());
  if (!persistent && queue < 0) {
    return fail(
        Kind::unsupported,
        "interface {} lives only as long as a descriptor of /dev/net/tun (it is not persistent), and nobody in the tree "
        "has one that is attached to it",
        out.name());
  }
  pb::TunLinkEntry& tun = *out.mutable_tun();
  std::uint32_t flags = number8(data, IFLA_TUN_TYPE);
  flags |= number8(data, IFLA_TUN_PI) != 0 ? 0U : std::uint32_t{IFF_NO_PI};
  flags |= number8(data, IFLA_TUN_VNET_HDR) != 0 ? std::uint32_t{IFF_VNET_HDR} : 0U;
  flags |= number8(data, IFLA_TUN_MULTI_QUEUE) != 0 ? std::uint32_t{IFF_MULTI_QUEUE} : 0U;
  tun.set_flags(flags | (persistent ? std::uint32_t{IFF_PERSIST} : 0U));
  tun.set_owner(value_as<std::int32_t>(find(data, IFLA_TUN_OWNER)).value_or(-1));
  tun.set_group(value_as<std::int32_t>(find(data, IFLA_TUN_GROUP)).value_or(-1));
  tun::Device device;
  if (queue >= 0) {
    FERRY_TRY(device, tun::look_at(queue, fmt::format("interface {}", out.name())));
  }
  tun.set_vnethdr(device.header_size);
  tun.set_sndbuf(device.send_buffer);
  return {};
}

Result<void> check_vxlan(const std::vector<Attribute>& attributes, const std::vector<Attribute>& data,
                         const std::string& name) {
  if (find(attributes, IFLA_LINK_NETNSID).has_value()) {
    return fail(Kind::unsupported,
                "interface {} (vxlan) sends through another network namespace, and cannot be carried", name);
  }
  if (number8(data, IFLA_VXLAN_VNIFILTER) != 0) {
    return fail(Kind::unsupported, "interface {} (vxlan) has a list of networks (vnifilter), and cannot be carried",
                name);
  }
  return {};
}

// IFLA_LINK of a link whose lower or other end is in another namespace.
Result<void> find_peer(const std::string& kind, const std::vector<Attribute>& attributes,
                       const std::vector<NamespaceNumber>& numbers, const DumpOptions& options,
                       pb::NetDeviceEntry& out) {
  const auto number = value_as<std::int32_t>(find(attributes, IFLA_LINK_NETNSID));
  if (!number.has_value()) {
    return {};
  }
  const auto known =
      std::find_if(numbers.begin(), numbers.end(), [&](const NamespaceNumber& n) { return n.number == *number; });
  if (known != numbers.end()) {
    out.set_peer_nsid(known->id);
    return {};
  }
  // The other end of a veth is named when it is made again; a macvlan needs its parent.
  if (kind != "veth" && kind != "macvlan" && !external_key(options, kind, out.name()).has_value()) {
    return fail(Kind::unsupported,
                "interface {} ({}) hangs on one outside of the tree's network namespaces, and cannot "
                "be carried",
                out.name(), kind);
  }
  return {};
}

Result<pb::NetDeviceEntry> describe(Bytes body, const DumpContext& context, std::uint32_t network,
                                    const std::vector<NamespaceNumber>& numbers) {
  const DumpOptions& options = context.options;
  const auto head = head_of<ifinfomsg>(body);
  if (!head.has_value()) {
    return fail(Kind::corrupt, "a link is cut off");
  }
  const auto attributes = after_head<ifinfomsg>(body);
  const auto info_of = find(attributes, IFLA_LINKINFO);
  const auto info = info_of.has_value() ? attributes_of(info_of->value) : std::vector<Attribute>();
  const std::string kind = text_of(find(info, IFLA_INFO_KIND));
  const auto data_of = find(info, IFLA_INFO_DATA);
  const auto data = data_of.has_value() ? attributes_of(data_of->value) : std::vector<Attribute>();

  pb::NetDeviceEntry out;
  out.set_name(text_of(find(attributes, IFLA_IFNAME)));
  out.set_ifindex(static_cast<std::uint32_t>(head->ifi_index));
  out.set_mtu(value_as<std::uint32_t>(find(attributes, IFLA_MTU)).value_or(0));
  out.set_flags(head->ifi_flags);
  if (const auto address = find(attributes, IFLA_ADDRESS)) {
    out.set_address(address->value.data(), address->value.size());
  }
  out.set_peer_ifindex(value_as<std::uint32_t>(find(attributes, IFLA_LINK)).value_or(out.ifindex()));
  if (const auto master = value_as<std::uint32_t>(find(attributes, IFLA_MASTER))) {
    out.set_master(*master);
  }
  out.set_type(pb::NDTYPE_FERRY_LINK);
  if (head->ifi_type == ARPHRD_LOOPBACK && kind.empty()) {
    out.set_type(pb::NDTYPE_LOOPBACK);
  } else if (kind.empty()) {
    if (!external_key(options, "netdev", out.name()).has_value()) {
      return fail(Kind::unsupported,
                  "interface {} is a device of this host, which cannot be made again; use --external netdev[{}]:NAME, "
                  "--empty-ns net, or declare the namespace external",
                  out.name(), out.name());
    }
    out.set_type(pb::NDTYPE_EXTLINK);
  } else if (kind == "veth") {
    out.set_type(pb::NDTYPE_VETH);
  } else if (kind == "bridge") {
    out.set_type(pb::NDTYPE_BRIDGE);
  } else if (kind == "macvlan") {
    out.set_type(pb::NDTYPE_MACVLAN);
    out.mutable_macvlan()->set_mode(value_as<std::uint32_t>(find(data, IFLA_MACVLAN_MODE)).value_or(0));
    out.mutable_macvlan()->set_flags(value_as<std::uint16_t>(find(data, IFLA_MACVLAN_FLAGS)).value_or(0));
  } else if (kind == "tun") {
    out.set_type(pb::NDTYPE_TUN);
    FERRY_CHECK(describe_tun(data, context, network, out));
  } else if (kind == "vxlan") {
    FERRY_CHECK(check_vxlan(attributes, data, out.name()));
  } else if (kind == "bond" || kind == "team" || kind == "wireguard" || kind == "openvswitch") {
    return fail(Kind::unsupported, "interface {} is of kind {}, which cannot be carried", out.name(), kind);
  }
  FERRY_CHECK(find_peer(kind, attributes, numbers, options, out));
  Message link(*head);
  for (const Attribute& a : attributes) {
    if (kept().contains(a.type)) {
      link.put(a);
    }
  }
  out.set_ferry_link(link.bytes().data(), link.bytes().size());
  return out;
}

// Disciplines and filters of tc(8), of which only the kernel's own choice comes again by itself: it has no handle.
Result<void> check_queueing(sys::Netlink& netlink, const std::vector<pb::NetDeviceEntry>& devices) {
  const tcmsg all{};
  const auto check = [&](Bytes body) -> Result<void> {
    const auto head = head_of<tcmsg>(body);
    if (!head.has_value() || head->tcm_handle == 0) {
      return {};
    }
    const auto device = std::find_if(devices.begin(), devices.end(), [&](const pb::NetDeviceEntry& d) {
      return d.ifindex() == static_cast<std::uint32_t>(head->tcm_ifindex);
    });
    return fail(Kind::unsupported, "interface {} has a queueing discipline ({}), which cannot be carried over",
                device == devices.end() ? std::to_string(head->tcm_ifindex) : device->name(),
                text_of(find(after_head<tcmsg>(body), TCA_KIND)));
  };
  auto checked = netlink.request(RTM_GETQDISC, NLM_F_DUMP, std::as_bytes(std::span(&all, 1)), "disciplines", check);
  const bool none = !checked.has_value() && checked.error().os_errno == EOPNOTSUPP;  // without CONFIG_NET_SCHED
  return none ? Result<void>() : checked;
}

}  // namespace

Result<std::vector<pb::NetDeviceEntry>> collect_links(const DumpContext& context, std::uint32_t network,
                                                      const std::vector<NamespaceNumber>& numbers) {
  FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_ROUTE));
  const ifinfomsg all{};
  std::vector<pb::NetDeviceEntry> out;
  FERRY_CHECK(netlink.request(RTM_GETLINK, NLM_F_DUMP, std::as_bytes(std::span(&all, 1)), "links",
                              [&](Bytes body) -> Result<void> {
                                FERRY_TRY(auto device, describe(body, context, network, numbers));
                                out.push_back(std::move(device));
                                return {};
                              }));
  FERRY_CHECK(check_queueing(netlink, out));
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.ifindex() < b.ifindex(); });
  return out;
}

bool has_peer_elsewhere(const pb::NetDeviceEntry& device) {
  const auto link = std::as_bytes(std::span(device.ferry_link().data(), device.ferry_link().size()));
  return find(after_head<ifinfomsg>(link), IFLA_LINK_NETNSID).has_value();
}

Result<std::vector<NamespaceNumber>> collect_numbers(const std::map<std::uint32_t, int>& namespaces) {
  std::vector<NamespaceNumber> out;
  FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_ROUTE));
  for (const auto& [id, fd] : namespaces) {
    Message question(rtgenmsg{});
    question.put_number<std::uint32_t>(NETNSA_FD, static_cast<std::uint32_t>(fd));
    FERRY_CHECK(netlink.request(RTM_GETNSID, 0, question.bytes(), "namespace number", [&](Bytes body) -> Result<void> {
      const auto number = value_as<std::int32_t>(find(after_head<rtgenmsg>(body), NETNSA_NSID)).value_or(-1);
      if (number >= 0) {
        out.push_back({id, number});
      }
      return {};
    }));
  }
  return out;
}

}  // namespace ferry::state::net
