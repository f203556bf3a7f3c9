#include "state/net/bridge_port.h"

#include <linux/if_link.h>
#include <sys/socket.h>

#include <set>
#include <string>

namespace ferry::state::net {
namespace {

// What a link tells of itself as the port of a bridge; empty if it is none.
std::vector<Attribute> told_as_port(Bytes link) {
  const auto info = find(after_head<ifinfomsg>(link), IFLA_LINKINFO);
  const auto parts = info.has_value() ? attributes_of(info->value) : std::vector<Attribute>();
  const auto data = find(parts, IFLA_INFO_SLAVE_DATA);
  const bool is_port = text_of(find(parts, IFLA_INFO_SLAVE_KIND)) == "bridge" && data.has_value();
  return is_port ? attributes_of(data->value) : std::vector<Attribute>();
}

}  // namespace

std::uint16_t port_number(Bytes link) {
  return value_as<std::uint16_t>(find(told_as_port(link), IFLA_BRPORT_NO)).value_or(0);
}

std::optional<Message> port_settings(const ifinfomsg& head, Bytes link) {
  static const std::set<std::uint16_t> kSettings = {
      IFLA_BRPORT_PRIORITY,       IFLA_BRPORT_MODE,           IFLA_BRPORT_GUARD,
      IFLA_BRPORT_PROTECT,        IFLA_BRPORT_FAST_LEAVE,     IFLA_BRPORT_LEARNING,
      IFLA_BRPORT_UNICAST_FLOOD,  IFLA_BRPORT_PROXYARP,       IFLA_BRPORT_PROXYARP_WIFI,
      IFLA_BRPORT_MCAST_TO_UCAST, IFLA_BRPORT_MCAST_FLOOD,    IFLA_BRPORT_BCAST_FLOOD,
      IFLA_BRPORT_GROUP_FWD_MASK, IFLA_BRPORT_NEIGH_SUPPRESS, IFLA_BRPORT_ISOLATED,
      IFLA_BRPORT_BACKUP_PORT,    IFLA_BRPORT_LOCKED,         IFLA_BRPORT_MULTICAST_ROUTER};
  const std::vector<Attribute> told = told_as_port(link);
  if (told.empty()) {
    return std::nullopt;
  }
  Message message(head);
  message.nest(IFLA_LINKINFO, [&] {
    message.put_text(IFLA_INFO_SLAVE_KIND, "bridge");
    message.nest(IFLA_INFO_SLAVE_DATA, [&] {
      for (const Attribute& a : told) {
        if (kSettings.contains(a.type)) {
          message.put(a);
        }
      }
    });
  });
  return message;
}

}  // namespace ferry::state::net
