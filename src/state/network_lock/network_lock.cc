#include "state/network_lock/network_lock.h"

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <netinet/in.h>

#include <cstring>

#include "base/log.h"
#include "state/network_lock/iptables.h"
#include "sys/file.h"
#include "sys/net_namespace.h"
#include "sys/nftables.h"

namespace ferry::state::network_lock {
namespace {

using sys::NftRule;
using sys::NftTransaction;

constexpr std::int32_t kFilterPriority = 0;  // NF_IP_PRI_FILTER
constexpr const char* kSets[] = {"connections4", "connections6"};

std::string table_name(const Request& request) { return "CRIU-" + request.id; }

// A key of a set: every field begins at a multiple of four bytes.
std::vector<std::byte> key(const Connection& c) {
  const std::size_t size = c.ipv6 ? 16 : 4;
  std::vector<std::byte> out(2 * size + 8);
  const auto put = [&](std::size_t at, const void* bytes, std::size_t count) {
    std::memcpy(out.data() + at, bytes, count);
  };
  const std::uint16_t local = htons(c.local_port), remote = htons(c.remote_port);
  put(0, c.local.data(), size);
  put(size, &local, sizeof local);
  put(size + 4, c.remote.data(), size);
  put(2 * size + 4, &remote, sizeof remote);
  return out;
}

// nft's numbers of the data types ipv4_addr, ipv6_addr and inet_service; six bits each in a concatenation.
constexpr std::uint32_t kAddressType[] = {7, 8};
constexpr std::uint32_t kPortType = 13;

std::uint32_t key_type(bool ipv6) {
  const std::uint32_t address = kAddressType[ipv6 ? 1 : 0];
  return address << 18 | kPortType << 12 | address << 6 | kPortType;
}

// Packets of the connections: in the input the destination is ours, in the output the source.
NftRule connection_rule(bool ipv6, bool input) {
  const std::uint32_t size = ipv6 ? 16 : 4;
  const std::uint32_t source = ipv6 ? 8 : 12, destination = ipv6 ? 24 : 16;  // in the IP header
  const unsigned words = size / 4;
  NftRule rule;
  rule.family_is(ipv6 ? NFPROTO_IPV6 : NFPROTO_IPV4).protocol_is(IPPROTO_TCP);
  rule.load_network(0, input ? destination : source, size).load_transport(words, input ? 2 : 0, 2);
  rule.load_network(words + 1, input ? source : destination, size).load_transport(2 * words + 1, input ? 0 : 2, 2);
  rule.found_in(kSets[ipv6 ? 1 : 0], 0).then(NftRule::Verdict::drop);
  return rule;
}

void add(NftTransaction& to, const Request& request, bool owned) {
  const std::string table = table_name(request);
  constexpr std::uint8_t kFamily = NFPROTO_INET;
  to.add_table(kFamily, table, owned);
  for (const bool ipv6 : {false, true}) {
    std::vector<std::vector<std::byte>> elements;
    for (const Connection& c : request.connections) {
      if (c.ipv6 == ipv6) {
        elements.push_back(key(c));
      }
    }
    if (!request.whole) {
      to.add_set(kFamily, table, kSets[ipv6 ? 1 : 0], key_type(ipv6), ipv6 ? 40 : 16, elements);
    }
  }
  for (const bool input : {true, false}) {
    const char* chain = input ? "input" : "output";
    to.add_chain(kFamily, table, chain, input ? NF_INET_LOCAL_IN : NF_INET_LOCAL_OUT, kFilterPriority,
                 request.whole ? NftRule::Verdict::drop : NftRule::Verdict::accept);
    to.add_rule(kFamily, table, chain, NftRule().mark_is(kOwnMark).then(NftRule::Verdict::accept));
    if (!request.whole) {
      to.add_rule(kFamily, table, chain, connection_rule(false, input));
      to.add_rule(kFamily, table, chain, connection_rule(true, input));
    }
  }
}

// Whether there is one or not: nf_tables takes a table that is made and deleted in one transaction.
void remove(NftTransaction& to, const Request& request, bool owned) {
  to.add_table(NFPROTO_INET, table_name(request), owned);
  to.delete_table(NFPROTO_INET, table_name(request));
}

}  // namespace

struct Lock::State {
  Request request;
  UniqueFd ns;  // empty: ours
  sys::Nftables nft;
  bool owned = false;

  Result<void> nftables(const NftTransaction& transaction, std::string_view what) {
    return nft.commit(transaction, fmt::format("{} table inet {}", what, table_name(request)));
  }
  Result<void> iptables(bool on) {
    FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(ns ? ns.get() : -1));
    return switch_iptables(request, on);
  }
};

Lock::Lock() = default;
Lock::Lock(Lock&&) noexcept = default;
Lock& Lock::operator=(Lock&& other) noexcept {
  std::swap(state_, other.state_);
  return *this;
}

Lock::~Lock() {
  if (state_ != nullptr) {
    if (auto done = release(); !done.has_value()) {
      log::error(done.error());
    }
  }
}

Result<Lock> Lock::take(const Request& request, int ns, bool lasting) {
  Lock lock;
  if (request.method == NetworkLock::skip) {
    return lock;
  }
  auto state = std::make_unique<State>();
  state->request = request;
  if (ns >= 0) {
    FERRY_TRY(state->ns, sys::duplicate(ns));
  }
  if (request.method == NetworkLock::iptables) {
    if (request.whole || !lasting) {  // otherwise the rules of the dump are there
      FERRY_CHECK(state->iptables(true).during("locking the network"));
    }
  } else {
    FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(ns));
    FERRY_TRY(state->nft, sys::Nftables::open());
    state->owned = !lasting;
    NftTransaction transaction;
    if (lasting) {
      remove(transaction, request, false);
    }
    add(transaction, request, state->owned);
    FERRY_CHECK(state->nftables(transaction, "making").during("locking the network"));
  }
  lock.state_ = std::move(state);
  return lock;
}

Result<void> Lock::keep() {
  if (state_ != nullptr && state_->owned) {
    // At no moment is there none.
    NftTransaction transaction;
    transaction.delete_table(NFPROTO_INET, table_name(state_->request));
    add(transaction, state_->request, false);
    FERRY_CHECK(state_->nftables(transaction, "keeping"));
  }
  leave();
  return {};
}

Result<void> Lock::release() {
  const auto state = std::move(state_);
  if (state == nullptr) {
    return {};
  }
  if (state->request.method == NetworkLock::iptables) {
    return state->iptables(false).during("unlocking the network");
  }
  NftTransaction transaction;
  remove(transaction, state->request, state->owned);
  return state->nftables(transaction, "removing");
}

void Lock::leave() { state_.reset(); }

Result<void> Locks::keep() {
  for (Lock& lock : locks_) {
    FERRY_CHECK(lock.keep());
  }
  return {};
}

Result<void> Locks::release() {
  Result<void> outcome;
  for (Lock& lock : locks_) {
    Result<void> done = lock.release();
    if (outcome.has_value()) {
      outcome = std::move(done);
    }
  }
  return outcome;
}

void Locks::leave() {
  for (Lock& lock : locks_) {
    lock.leave();
  }
}

}  // namespace ferry::state::network_lock
