#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <sys/socket.h>

#include <cerrno>
#include <set>
#include <string>

#include "state/net/firewall.h"
#include "state/net/message.h"
#include "sys/netlink.h"

namespace ferry::state::net {
namespace {

constexpr std::uint16_t kNew = (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_NEW;
constexpr std::uint16_t kGet = (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_GET;
constexpr std::uint16_t kExpectNew = (NFNL_SUBSYS_CTNETLINK_EXP << 8) | IPCTNL_MSG_EXP_NEW;
constexpr std::uint16_t kExpectGet = (NFNL_SUBSYS_CTNETLINK_EXP << 8) | IPCTNL_MSG_EXP_GET;

Result<void> save(image::Set& set, image::Name name, std::uint16_t question, std::uint16_t type) {
  FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_NETFILTER));
  nfgenmsg head{};
  head.nfgen_family = AF_UNSPEC;
  std::string out;
  const auto asked = netlink.request(question, NLM_F_DUMP, std::as_bytes(std::span(&head, 1)), "connections",
                                     [&](Bytes body) -> Result<void> {
                                       append_message(out, type, body);
                                       return {};
                                     });
  if (asked.has_value() && !out.empty()) {  // a kernel without connection tracking has none
    set.set_raw(name, std::move(out));
  }
  return {};
}

// What one may say of a new connection: not its number, users and counters.
Result<void> restore_one(sys::Netlink& netlink, Bytes body) {
  const auto head = head_of<nfgenmsg>(body);
  if (!head.has_value()) {
    return fail(Kind::corrupt, "a connection is cut off");
  }
  static const std::set<std::uint16_t> kKept = {CTA_TUPLE_ORIG, CTA_TUPLE_REPLY,  CTA_PROTOINFO,     CTA_HELP,
                                                CTA_MARK,       CTA_TIMEOUT,      CTA_ZONE,          CTA_LABELS,
                                                CTA_STATUS,     CTA_SEQ_ADJ_ORIG, CTA_SEQ_ADJ_REPLY, CTA_SYNPROXY};
  Message message(*head);
  for (const Attribute& a : after_head<nfgenmsg>(body)) {
    if (a.type == CTA_STATUS) {
      // Of the bits that the kernel sets by itself the master's is refused (ctnetlink_change_status).
      std::uint32_t status = value_as<std::uint32_t>(a).value_or(0);
      status &= ~__builtin_bswap32(IPS_EXPECTED);
      message.put_number(CTA_STATUS, status);
    } else if (kKept.contains(a.type)) {
      message.put(a);
    }
  }
  auto made = netlink.request(kNew, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, message.bytes(), "connection",
                              [](Bytes) -> Result<void> { return {}; });
  if (!made.has_value() && made.error().os_errno != EEXIST) {
    return made;
  }
  return {};
}

}  // namespace

Result<void> save_connections(image::Set& set, std::uint32_t id) {
  FERRY_CHECK(save(set, {image::Type::netns_ct, id}, kGet, kNew));
  return save(set, {image::Type::netns_exp, id}, kExpectGet, kExpectNew);
}

Result<void> restore_connections(const image::Set& set, std::uint32_t id) {
  // CRIU writes the connections into both files; expectations are told apart by their type.
  for (const image::Type type : {image::Type::netns_ct, image::Type::netns_exp}) {
    const std::string* raw = set.raw({type, id});
    if (raw == nullptr || raw->empty()) {
      continue;
    }
    FERRY_TRY(sys::Netlink netlink, sys::Netlink::open(NETLINK_NETFILTER));
    FERRY_CHECK(each_message(*raw, image::file_name({type, id}), [&](std::uint16_t kind, Bytes body) -> Result<void> {
      if (kind == kNew) {
        return restore_one(netlink, body);
      }
      auto made = netlink.request(kExpectNew, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, body, "expected connection",
                                  [](Bytes) -> Result<void> { return {}; });
      return made.has_value() || made.error().os_errno == EEXIST ? Result<void>() : made;
    }));
  }
  return {};
}

}  // namespace ferry::state::net
