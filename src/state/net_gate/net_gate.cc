#include "state/net_gate/net_gate.h"

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter_arp.h>

#include <algorithm>
#include <cerrno>
#include <iterator>

#include "state/inet_socket/inject.h"
#include "sys/net_namespace.h"

namespace ferry::state::net_gate {
namespace {

using network_lock::kOwnMark;
using sys::Nftables;
using sys::NftRule;
using sys::NftTransaction;
using Verdict = NftRule::Verdict;

constexpr const char* kShut = "ferry-shut";
constexpr const char* kBolts = "bolts";  // the chain that all of its hooks lead to: empty, and everything passes
constexpr const char* kWithheld = "ferry-withheld";
constexpr const char* kArriving = "arriving";  // its chain, and the one where whatever comes waits
constexpr const char* kWaiting = "waiting";
// Before connection tracking (-200) and everything that people hang in.
constexpr std::int32_t kFirst = -400;
constexpr std::uint32_t kEgress = 1;  // NF_NETDEV_EGRESS
constexpr std::uint32_t kMostWaiting = 65536;
constexpr std::uint8_t kSyn = 2, kAck = 16, kFlagsAt = 13;  // in a TCP header

Result<Nftables> commit(int ns, const NftTransaction& transaction, std::string_view what) {
  FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(ns));
  FERRY_TRY(Nftables nft, Nftables::open());
  FERRY_CHECK(nft.commit(transaction, what));
  return nft;
}

// There afterwards, and empty.
void renew(NftTransaction& to, std::uint8_t family, const char* table, bool owned) {
  to.add_table(family, table, owned);
  to.delete_table(family, table);
  to.add_table(family, table, owned);
}

struct Chain {
  std::uint8_t family;
  const char* name;
  std::uint32_t hook;
};
// Not only what is for the namespace itself: nothing is forwarded either.
constexpr Chain kChains[] = {{NFPROTO_INET, "prerouting", NF_INET_PRE_ROUTING},
                             {NFPROTO_INET, "output", NF_INET_LOCAL_OUT},
                             {NFPROTO_INET, "postrouting", NF_INET_POST_ROUTING},
                             {NFPROTO_ARP, "input", NF_ARP_IN},
                             {NFPROTO_ARP, "output", NF_ARP_OUT}};
constexpr std::uint8_t kFamilies[] = {NFPROTO_INET, NFPROTO_ARP};

void add_bolts(NftTransaction& to, std::uint8_t family, const char* chain) {
  to.add_rule(family, kShut, chain, NftRule().mark_is(kOwnMark).then(Verdict::accept));
  to.add_rule(family, kShut, chain, NftRule().then(Verdict::drop));
}

// There afterwards, with the bolts as they are.
void hang_in(NftTransaction& to) {
  for (const std::uint8_t family : kFamilies) {
    to.add_table(family, kShut, false);
    to.add_inner_chain(family, kShut, kBolts);
  }
  for (const Chain& c : kChains) {
    to.add_chain(c.family, kShut, c.name, c.hook, kFirst, Verdict::accept);
    to.flush_chain(c.family, kShut, c.name);
    to.add_rule(c.family, kShut, c.name, NftRule().then_chain(kBolts));
  }
}

void bolt(NftTransaction& to) {
  for (const std::uint8_t family : kFamilies) {
    to.flush_chain(family, kShut, kBolts);
    add_bolts(to, family, kBolts);
  }
}

void remove(NftTransaction& to, std::uint8_t family) {
  to.add_table(family, kShut, false);
  to.delete_table(family, kShut);
}

}  // namespace

Result<Gate> Gate::hang(int ns) {
  NftTransaction t;
  hang_in(t);
  Gate out;
  FERRY_TRY(out.nft_, commit(ns, t, "preparing to shut a network namespace"));
  return out;
}

Result<void> Gate::shut() {
  NftTransaction t;
  bolt(t);
  return nft_.commit(t, "shutting a network namespace");
}

Result<void> Gate::let_pass() {
  NftTransaction t;
  for (const std::uint8_t family : kFamilies) {
    t.flush_chain(family, kShut, kBolts);
  }
  return nft_.commit(t, "letting everything pass");
}

Result<void> shut(int ns) {
  NftTransaction t;
  hang_in(t);
  bolt(t);
  FERRY_CHECK(commit(ns, t, "shutting a network namespace"));
  return {};
}

Result<void> shut_device(int ns, std::string_view interface) {
  const std::string chain = fmt::format("egress-{}", interface);
  NftTransaction t;
  t.add_table(NFPROTO_NETDEV, kShut, false);
  t.add_chain(NFPROTO_NETDEV, kShut, chain, kEgress, kFirst, Verdict::accept, interface);
  t.flush_chain(NFPROTO_NETDEV, kShut, chain);
  add_bolts(t, NFPROTO_NETDEV, chain.c_str());
  FERRY_CHECK(commit(ns, t, fmt::format("shutting interface {}", interface)));
  return {};
}

Result<void> open(int ns) {
  NftTransaction t;
  remove(t, NFPROTO_INET);
  remove(t, NFPROTO_ARP);
  remove(t, NFPROTO_NETDEV);
  FERRY_CHECK(commit(ns, t, "opening a network namespace"));
  return {};
}

Result<Withheld> Withheld::begin(int ns) {
  FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(ns));
  Withheld out;
  FERRY_TRY(out.nft_, Nftables::open());
  FERRY_TRY(out.queue_, sys::PacketQueue::open(kMostWaiting));
  auto rules = out.set_rules();
  if (!rules.has_value() && rules.error().os_errno == ENOENT) {
    out.by_ = NftRule::QueueBy::target;
    rules = out.set_rules();
  }
  FERRY_CHECK(std::move(rules));
  return out;
}

// The rule that makes packets wait stands in a chain of its own, so that to lead more of them there is a rule
// without an expression that the kernel has to set up: nft_compat waits for a grace period of RCU before it takes
// a target (nft_target_init in net/netfilter/nft_compat.c).
Result<void> Withheld::set_rules() {
  NftTransaction t;
  renew(t, NFPROTO_INET, kWithheld, true);
  t.add_inner_chain(NFPROTO_INET, kWithheld, kWaiting);
  t.add_rule(NFPROTO_INET, kWithheld, kWaiting, NftRule().then_queue(by_));
  t.add_chain(NFPROTO_INET, kWithheld, kArriving, NF_INET_PRE_ROUTING, kFirst, Verdict::accept);
  t.add_rule(NFPROTO_INET, kWithheld, kArriving, NftRule().mark_is(kOwnMark).then(Verdict::accept));
  t.add_rule(NFPROTO_INET, kWithheld, kArriving,
             NftRule().protocol_is(IPPROTO_TCP).transport_byte_is(kFlagsAt, kSyn | kAck, kSyn).then_chain(kWaiting));
  return nft_.commit(t, "withholding packets");
}

// Rules come and go without harm to what waits; chains do not.
Result<void> Withheld::widen() {
  NftTransaction t;
  t.add_rule(NFPROTO_INET, kWithheld, kArriving, NftRule().then_chain(kWaiting));
  return nft_.commit(t, "withholding all packets");
}

Result<void> Withheld::remove() {
  NftTransaction t;
  t.delete_table(NFPROTO_INET, kWithheld);
  return nft_.commit(t, "withholding packets no longer");
}

Result<void> Withheld::collect() {
  FERRY_TRY(auto more, queue_.take());
  std::move(more.begin(), more.end(), std::back_inserter(packets_));
  return {};
}

Result<void> Withheld::let_in() {
  FERRY_CHECK(collect());
  FERRY_CHECK(queue_.accept_all());
  NftTransaction t;
  t.flush_chain(NFPROTO_INET, kWithheld, kArriving);
  FERRY_CHECK(nft_.commit(t, "letting packets in"));
  // What arrived in between.
  FERRY_CHECK(collect());
  FERRY_CHECK(queue_.accept_all());
  return remove();
}

Result<void> Withheld::discard() {
  FERRY_CHECK(collect());
  FERRY_CHECK(queue_.drop_all());
  return remove();
}

Result<std::size_t> deliver(int ns, const std::vector<std::string>& packets) {
  FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(ns));
  inet_socket::Injector injector;
  std::size_t count = 0;
  for (const std::string& packet : packets) {
    const auto to = inet_socket::destination_of(packet);
    if (to && inet_socket::is_local(*to)) {
      FERRY_CHECK(injector.send(packet, *to));
      ++count;
    }
  }
  return count;
}

}  // namespace ferry::state::net_gate
