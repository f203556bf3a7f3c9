#include "state/net/tables.h"

#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/neighbour.h>
#include <linux/nexthop.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <set>
#include <thread>
#include <vector>

#include "state/net/message.h"
#include "sys/netlink.h"
#include "tracee/deadline.h"

namespace ferry::state::net {
namespace {

// What the files of `ip … save` begin with (docs/images.md).
constexpr std::uint32_t kAddressMagic = 0x47361222, kRouteMagic = 0x45311224, kRuleMagic = 0x71706986;

using Body = std::vector<std::byte>;

Body copy(Bytes bytes) { return {bytes.begin(), bytes.end()}; }

template <class Head>
Result<std::vector<Body>> dump(std::uint16_t type, unsigned char family, std::string_view subject) {
  FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_ROUTE));
  Head head{};
  *reinterpret_cast<unsigned char*>(&head) = family;  // the first byte of every head
  std::vector<Body> out;
  FERRY_CHECK(
      netlink.request(type, NLM_F_DUMP, std::as_bytes(std::span(&head, 1)), subject, [&](Bytes body) -> Result<void> {
        out.push_back(copy(body));
        return {};
      }));
  return out;
}

void start(std::string& out, std::uint32_t magic) { out.append(reinterpret_cast<const char*>(&magic), sizeof magic); }

// Routes that are no entries of a table but what was looked up in one.
bool is_cached(Bytes body) {
  const auto head = head_of<rtmsg>(body);
  return head.has_value() && (head->rtm_flags & RTM_F_CLONED) != 0;
}

// The same thing is the same key: without what changes by itself.
template <class Head>
std::string key_of(Bytes body, const std::set<std::uint16_t>& without) {
  std::string out(reinterpret_cast<const char*>(body.data()), std::min(sizeof(Head), body.size()));
  std::vector<std::string> parts;
  for (const Attribute& a : after_head<Head>(body)) {
    if (!without.contains(a.type)) {
      std::string part(reinterpret_cast<const char*>(&a.type), sizeof a.type);
      part.append(reinterpret_cast<const char*>(a.value.data()), a.value.size());
      parts.push_back(std::move(part));
    }
  }
  std::sort(parts.begin(), parts.end());
  for (const std::string& part : parts) {
    out += part;
  }
  return out;
}

// A route without what the state of its interfaces makes of it (dead, link down), which the kernel does not
// take (fib_create_info).
Body plain_route(Bytes body) {
  constexpr unsigned kOwn = RTNH_F_ONLINK | RTNH_F_PERVASIVE;
  auto head = head_of<rtmsg>(body);
  if (!head.has_value()) {
    return {};
  }
  head->rtm_flags &= kOwn;
  Message message(*head);
  for (const Attribute& a : after_head<rtmsg>(body)) {
    Body value = copy(a.value);
    for (std::size_t at = 0; a.type == RTA_MULTIPATH && at + sizeof(rtnexthop) <= value.size();) {
      auto* hop = reinterpret_cast<rtnexthop*>(value.data() + at);
      hop->rtnh_flags = static_cast<unsigned char>(hop->rtnh_flags & kOwn);
      at += std::max<std::size_t>(RTNH_ALIGN(hop->rtnh_len), sizeof(rtnexthop));
    }
    if (a.type != RTA_CACHEINFO) {
      message.put({a.type, a.flags, value});
    }
  }
  return copy(message.bytes());
}

std::string route_key(Bytes body) { return key_of<rtmsg>(body, {RTA_EXPIRES}); }
std::string rule_key(Bytes body) { return key_of<fib_rule_hdr>(body, {}); }
// An address is known by interface, family and itself.
std::string address_key(Bytes body) {
  const auto head = head_of<ifaddrmsg>(body);
  const auto attributes = after_head<ifaddrmsg>(body);
  auto address = find(attributes, IFA_LOCAL);
  address = address.has_value() ? address : find(attributes, IFA_ADDRESS);
  std::string out =
      head.has_value() ? fmt::format("{} {} {} ", head->ifa_family, head->ifa_index, head->ifa_prefixlen) : "";
  if (address.has_value()) {
    out.append(reinterpret_cast<const char*>(address->value.data()), address->value.size());
  }
  return out;
}

// The messages of an image behind its magic.
Result<std::vector<Body>> load(const std::string* raw, std::uint32_t magic, std::uint16_t type,
                               std::string_view subject) {
  std::vector<Body> out;
  if (raw == nullptr || raw->empty()) {
    return out;
  }
  std::uint32_t found = 0;
  if (raw->size() >= sizeof found) {
    std::memcpy(&found, raw->data(), sizeof found);
  }
  if (found != magic) {
    return fail(Kind::corrupt, "{} does not begin as it should", subject);
  }
  FERRY_CHECK(each_message(std::string_view(*raw).substr(sizeof found), subject,
                           [&](std::uint16_t t, Bytes body) -> Result<void> {
                             if (t == type) {
                               out.push_back(copy(body));
                             }
                             return {};
                           }));
  return out;
}

Result<void> send(std::uint16_t type, std::uint16_t flags, Bytes body, std::string_view subject) {
  FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_ROUTE));
  return netlink.request(type, static_cast<std::uint16_t>(NLM_F_ACK | flags), body, subject,
                         [](Bytes) -> Result<void> { return {}; });
}

// One thing may need another that comes later (a gateway its route, a route its next hop): again as long as
// that helps.
Result<void> add_all(std::vector<Body> todo, std::uint16_t type, std::uint16_t flags, std::string_view subject) {
  while (!todo.empty()) {
    std::vector<Body> later;
    std::optional<Result<void>> refused;
    for (Body& body : todo) {
      auto added = send(type, flags, body, subject);
      if (!added.has_value() && added.error().os_errno != EEXIST) {
        refused = std::move(added);
        later.push_back(std::move(body));
      }
    }
    if (refused.has_value() && later.size() == todo.size()) {
      return std::move(*refused);
    }
    todo = std::move(later);
  }
  return {};
}

// Makes what there is to what is wanted.  `request`: how it is said to the kernel, if not as the kernel says it.
template <class Key, class Request = Body (*)(Bytes)>
Result<void> settle(const std::vector<Body>& now, const std::vector<Body>& wanted, Key key, std::uint16_t add,
                    std::uint16_t remove, std::string_view subject, Request request = copy) {
  std::set<std::string> keys, present;
  for (const Body& body : wanted) {
    keys.insert(key(body));
  }
  for (const Body& body : now) {
    if (keys.contains(key(body))) {
      present.insert(key(body));
      continue;
    }
    auto removed = send(remove, 0, request(body), subject);
    if (!removed.has_value() && removed.error().os_errno != ESRCH && removed.error().os_errno != ENOENT &&
        removed.error().os_errno != EADDRNOTAVAIL) {
      return removed;
    }
  }
  std::vector<Body> missing;
  for (const Body& body : wanted) {
    if (!present.contains(key(body))) {
      missing.push_back(request(body));
    }
  }
  return add_all(std::move(missing), add, NLM_F_CREATE | NLM_F_APPEND, subject);
}

// The kernel makes these with the address, once it has settled; ours would stand beside them.
bool comes_with_address(const Body& body) {
  const auto head = head_of<rtmsg>(body);
  return head.has_value() && head->rtm_family == AF_INET6 && head->rtm_protocol == RTPROT_KERNEL &&
         (head->rtm_type == RTN_LOCAL || head->rtm_type == RTN_ANYCAST);
}

// Whether an address waits to be settled on an interface that is ready.
Result<bool> is_settling() {
  std::set<unsigned> ready;
  FERRY_TRY(const auto links, dump<ifinfomsg>(RTM_GETLINK, AF_UNSPEC, "interfaces"));
  for (const Body& body : links) {
    const auto head = head_of<ifinfomsg>(body);
    if (head.has_value() && (head->ifi_flags & (IFF_UP | IFF_RUNNING)) == (IFF_UP | IFF_RUNNING)) {
      ready.insert(static_cast<unsigned>(head->ifi_index));
    }
  }
  FERRY_TRY(const auto addresses, dump<ifaddrmsg>(RTM_GETADDR, AF_INET6, "addresses"));
  return std::any_of(addresses.begin(), addresses.end(), [&](const Body& body) {
    const auto head = head_of<ifaddrmsg>(body);
    return head.has_value() && (head->ifa_flags & IFA_F_TENTATIVE) != 0 && ready.contains(head->ifa_index);
  });
}

// An interface whose carrier is there becomes ready in a worker of the kernel's (net/core/link_watch.c), which begins
// what IPv6 does with its addresses anew, and takes routes that are there by then for those of a dead link.  It works
// at once or, for one that has the same index as its peer, within a second.  One that is not ready even then gets its
// addresses all the same.
Result<void> let_links_settle() {
  const tracee::Deadline deadline(std::chrono::milliseconds(1500));
  constexpr unsigned kCarrier = IFF_UP | 1U << 16;  // IFF_LOWER_UP, netdevice(7)
  for (;;) {
    FERRY_TRY(const auto links, dump<ifinfomsg>(RTM_GETLINK, AF_UNSPEC, "interfaces"));
    const bool settling = std::any_of(links.begin(), links.end(), [](const Body& body) {
      const auto head = head_of<ifinfomsg>(body);
      return head.has_value() && (head->ifi_flags & kCarrier) == kCarrier && (head->ifi_flags & IFF_RUNNING) == 0;
    });
    if (!settling || deadline.passed()) {
      return {};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Without duplicate address detection an address settles at once, but in a worker of the kernel's; until then
// nobody can be reached at it.  One that has not settled in time does so later, by detection.
Result<void> let_addresses_settle() {
  const tracee::Deadline deadline(std::chrono::milliseconds(200));
  for (;;) {
    FERRY_TRY(const bool settling, is_settling());
    if (!settling || deadline.passed()) {
      return {};
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Result<void> restore_routes_of(const image::Set& set, image::Name name, unsigned char family) {
  FERRY_TRY(auto wanted, load(set.raw(name), kRouteMagic, RTM_NEWROUTE, image::file_name(name)));
  FERRY_TRY(auto now, dump<rtmsg>(RTM_GETROUTE, family, "routes"));
  for (auto* list : {&now, &wanted}) {
    std::erase_if(*list, [](const Body& body) { return is_cached(body) || comes_with_address(body); });
    for (Body& body : *list) {
      body = plain_route(body);
    }
  }
  return settle(now, wanted, route_key, RTM_NEWROUTE, RTM_DELROUTE, "route");
}

// What a bridge or VXLAN was told of who is reached through which of its ports or peers.  What it has learned
// itself it will learn again.
enum class Forwarding : std::uint8_t { other, of_bridge, of_vxlan };
Forwarding forwarding_of(Bytes body) {
  const auto head = head_of<ndmsg>(body);
  if (!head.has_value() || (head->ndm_state & (NUD_PERMANENT | NUD_NOARP)) == 0 ||
      (head->ndm_flags & NTF_EXT_LEARNED) != 0) {
    return Forwarding::other;
  }
  const auto attributes = after_head<ndmsg>(body);
  if (find(attributes, NDA_MASTER).has_value()) {
    return Forwarding::of_bridge;
  }
  // Other links tell in the same way which addresses they listen to, which come with whoever made them listen.
  const bool leads = find(attributes, NDA_DST).has_value() || find(attributes, NDA_NH_ID).has_value();
  return leads ? Forwarding::of_vxlan : Forwarding::other;
}

Result<std::vector<Body>> forwarding() {
  auto all = dump<ndmsg>(RTM_GETNEIGH, AF_BRIDGE, "forwarding databases");
  if (!all.has_value() && all.error().os_errno == EOPNOTSUPP) {
    return std::vector<Body>();
  }
  if (all.has_value()) {
    std::erase_if(*all, [](const Body& body) { return forwarding_of(body) == Forwarding::other; });
  }
  return all;
}

std::string forwarding_key(Bytes body) { return key_of<ndmsg>(body, {NDA_CACHEINFO}); }

// As it is to be said: by way of the bridge, or to the link itself.
Body forwarding_request(Bytes body) {
  auto head = head_of<ndmsg>(body);
  const auto attributes = after_head<ndmsg>(body);
  const auto bridge = value_as<std::uint32_t>(find(attributes, NDA_MASTER));
  const bool by_way = bridge.has_value() && *bridge != static_cast<std::uint32_t>(head->ndm_ifindex);
  head->ndm_flags = static_cast<std::uint8_t>((head->ndm_flags & NTF_STICKY) | (by_way ? NTF_MASTER : NTF_SELF));
  Message message(*head);
  for (const Attribute& a : attributes) {
    if (a.type != NDA_CACHEINFO && a.type != NDA_MASTER) {
      message.put(a);
    }
  }
  return copy(message.bytes());
}

// A bridge has the addresses of its ports by itself; a VXLAN that was made with a peer has that one, which may have
// been taken away later.
Result<void> restore_forwarding(const std::string& raw) {
  std::set<std::string> keys;
  std::vector<Body> wanted;
  FERRY_CHECK(each_message(raw, "forwarding databases", [&](std::uint16_t, Bytes body) -> Result<void> {
    if (forwarding_of(body) == Forwarding::other) {
      return fail(Kind::corrupt, "an entry of a forwarding database that nobody has made");
    }
    keys.insert(forwarding_key(body));
    wanted.push_back(copy(body));
    return {};
  }));
  FERRY_TRY(auto now, forwarding());
  std::erase_if(now, [&](const Body& body) {
    return forwarding_of(body) == Forwarding::of_bridge && !keys.contains(forwarding_key(body));
  });
  return settle(now, wanted, forwarding_key, RTM_NEWNEIGH, RTM_DELNEIGH, "forwarding database", forwarding_request);
}

Result<void> restore_neighbours(const std::string& raw) {
  return each_message(raw, "neighbours", [&](std::uint16_t, Bytes body) -> Result<void> {
    Body changed = copy(body);
    auto* head = reinterpret_cast<ndmsg*>(changed.data());
    if (changed.size() < sizeof(ndmsg)) {
      return fail(Kind::corrupt, "a neighbour is cut off");
    }
    // Whether it still answers has to be found out anew.
    if ((head->ndm_state & NUD_PERMANENT) == 0) {
      head->ndm_state = NUD_STALE;
    }
    Message message(*head);
    for (const Attribute& a : after_head<ndmsg>(body)) {
      if (a.type == NDA_DST || a.type == NDA_LLADDR || a.type == NDA_PROTOCOL || a.type == NDA_FLAGS_EXT) {
        message.put(a);
      }
    }
    return send(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, message.bytes(), "neighbour");
  });
}

}  // namespace

Result<void> save_tables(image::Set& set, std::uint32_t id, pb::NetnsEntry& out) {
  FERRY_TRY(const auto addresses, dump<ifaddrmsg>(RTM_GETADDR, AF_UNSPEC, "addresses"));
  std::string text;
  start(text, kAddressMagic);
  for (const Body& body : addresses) {
    append_message(text, RTM_NEWADDR, body);
  }
  set.set_raw({image::Type::ifaddr, id}, std::move(text));
  struct Routes {
    image::Type type;
    unsigned char family;
  };
  for (const Routes& routes : {Routes{image::Type::route, AF_INET}, Routes{image::Type::route6, AF_INET6}}) {
    FERRY_TRY(const auto list, dump<rtmsg>(RTM_GETROUTE, routes.family, "routes"));
    std::string saved;
    start(saved, kRouteMagic);
    for (const Body& body : list) {
      if (!is_cached(body)) {
        append_message(saved, RTM_NEWROUTE, body);
      }
    }
    set.set_raw({routes.type, id}, std::move(saved));
  }
  std::string rules;
  start(rules, kRuleMagic);
  for (const int family : {AF_INET, AF_INET6}) {
    const auto list = dump<fib_rule_hdr>(RTM_GETRULE, static_cast<unsigned char>(family), "rules");
    if (!list.has_value() && list.error().os_errno != EOPNOTSUPP && list.error().os_errno != EAFNOSUPPORT) {
      return tl::unexpected<Error>(list.error());
    }
    for (const Body& body : list.has_value() ? *list : std::vector<Body>()) {
      append_message(rules, RTM_NEWRULE, body);
    }
  }
  set.set_raw({image::Type::rule, id}, std::move(rules));
  FERRY_TRY(const auto neighbours, dump<ndmsg>(RTM_GETNEIGH, AF_UNSPEC, "neighbours"));
  for (const Body& body : neighbours) {
    const auto head = head_of<ndmsg>(body);
    constexpr std::uint16_t kWorthKeeping = NUD_PERMANENT | NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE;
    if (head.has_value() && (head->ndm_state & kWorthKeeping) != 0 &&
        (head->ndm_family == AF_INET || head->ndm_family == AF_INET6)) {
      append_message(*out.mutable_ferry_neighbours(), RTM_NEWNEIGH, body);
    }
  }
  const auto nexthops = dump<nhmsg>(RTM_GETNEXTHOP, AF_UNSPEC, "next hops");  // since Linux 5.3
  for (const Body& body : nexthops.has_value() ? *nexthops : std::vector<Body>()) {
    append_message(*out.mutable_ferry_nexthops(), RTM_NEWNEXTHOP, body);
  }
  FERRY_TRY(const auto entries, forwarding());
  std::string& saved = *out.mutable_ferry_forwarding();
  for (const Body& body : entries) {
    append_message(saved, RTM_NEWNEIGH, body);
  }
  return {};
}

Result<void> restore_addresses(const image::Set& set, std::uint32_t id) {
  const image::Name name{image::Type::ifaddr, id};
  FERRY_TRY(const auto wanted, load(set.raw(name), kAddressMagic, RTM_NEWADDR, image::file_name(name)));
  FERRY_CHECK(let_links_settle());
  std::set<std::string> keys;
  for (const Body& body : wanted) {
    auto head = head_of<ifaddrmsg>(body);
    if (!head.has_value()) {
      return fail(Kind::corrupt, "{}: an address is cut off", image::file_name(name));
    }
    keys.insert(address_key(body));
    // The kernel has to find out by itself whether an address is a duplicate, or was told not to.
    constexpr std::uint32_t kOwn = IFA_F_TENTATIVE | IFA_F_DADFAILED | IFA_F_DEPRECATED;
    head->ifa_flags = static_cast<unsigned char>(head->ifa_flags & ~kOwn);
    Message message(*head);
    for (const Attribute& a : after_head<ifaddrmsg>(body)) {
      if (a.type == IFA_FLAGS) {
        message.put_number(IFA_FLAGS, value_as<std::uint32_t>(a).value_or(0) & ~kOwn);
      } else {
        message.put(a);
      }
    }
    FERRY_CHECK(send(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, message.bytes(), "address"));
  }
  FERRY_TRY(const auto now, dump<ifaddrmsg>(RTM_GETADDR, AF_UNSPEC, "addresses"));
  for (const Body& body : now) {
    if (!keys.contains(address_key(body))) {
      auto removed = send(RTM_DELADDR, 0, body, "address");
      if (!removed.has_value() && removed.error().os_errno != EADDRNOTAVAIL) {
        return removed;
      }
    }
  }
  return let_addresses_settle();
}

Result<void> restore_routes(const image::Set& set, std::uint32_t id, const pb::NetnsEntry& entry) {
  std::vector<Body> nexthops;
  FERRY_CHECK(each_message(entry.ferry_nexthops(), "next hops", [&](std::uint16_t, Bytes body) -> Result<void> {
    nexthops.push_back(copy(body));
    return {};
  }));
  FERRY_CHECK(add_all(std::move(nexthops), RTM_NEWNEXTHOP, NLM_F_CREATE, "next hop"));
  FERRY_CHECK(restore_routes_of(set, {image::Type::route, id}, AF_INET));
  FERRY_CHECK(restore_routes_of(set, {image::Type::route6, id}, AF_INET6));
  const image::Name rules{image::Type::rule, id};
  FERRY_TRY(const auto wanted, load(set.raw(rules), kRuleMagic, RTM_NEWRULE, image::file_name(rules)));
  for (const int family : {AF_INET, AF_INET6}) {
    std::vector<Body> of_family;
    for (const Body& body : wanted) {
      const auto head = head_of<fib_rule_hdr>(body);
      if (head.has_value() && head->family == family) {
        of_family.push_back(body);
      }
    }
    const auto now = dump<fib_rule_hdr>(RTM_GETRULE, static_cast<unsigned char>(family), "rules");
    if (now.has_value() && !wanted.empty()) {
      FERRY_CHECK(settle(*now, of_family, rule_key, RTM_NEWRULE, RTM_DELRULE, "rule"));
    }
  }
  FERRY_CHECK(restore_neighbours(entry.ferry_neighbours()));
  return entry.has_ferry_forwarding() ? restore_forwarding(entry.ferry_forwarding()) : Result<void>();
}

}  // namespace ferry::state::net
