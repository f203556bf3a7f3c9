#include "sys/nftables.h"

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nf_tables_compat.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace ferry::sys {
namespace {

constexpr std::uint32_t kTableOwner = 2;          // NFT_TABLE_F_OWNER
constexpr std::size_t kElementsPerMessage = 400;  // an attribute holds at most 64 KiB
constexpr std::size_t kAnswerRoom = 64 * 1024;

std::span<const std::byte> bytes_of(const auto& value) { return std::as_bytes(std::span(&value, 1)); }

std::uint32_t code_of(NftRule::Verdict verdict) { return verdict == NftRule::Verdict::drop ? NF_DROP : NF_ACCEPT; }

}  // namespace

void NftRule::add(std::string_view name, const Attributes& data) {
  Attributes expression;
  expression.text(NFTA_EXPR_NAME, name);
  expression.nest(NFTA_EXPR_DATA, data);
  list_.nest(NFTA_LIST_ELEM, expression);
}

NftRule& NftRule::meta_is(std::uint32_t key, std::span<const std::byte> value) {
  Attributes load;
  load.be32(NFTA_META_DREG, NFT_REG32_00);
  load.be32(NFTA_META_KEY, key);
  add("meta", load);
  Attributes data, compare;
  data.bytes(NFTA_DATA_VALUE, value);
  compare.be32(NFTA_CMP_SREG, NFT_REG32_00);
  compare.be32(NFTA_CMP_OP, NFT_CMP_EQ);
  compare.nest(NFTA_CMP_DATA, data);
  add("cmp", compare);
  return *this;
}

NftRule& NftRule::mark_is(std::uint32_t mark) { return meta_is(NFT_META_MARK, bytes_of(mark)); }
NftRule& NftRule::family_is(std::uint8_t family) { return meta_is(NFT_META_NFPROTO, bytes_of(family)); }
NftRule& NftRule::protocol_is(std::uint8_t protocol) { return meta_is(NFT_META_L4PROTO, bytes_of(protocol)); }

NftRule& NftRule::incoming_device_is(std::string_view name) {
  char padded[IFNAMSIZ] = {};
  name.copy(padded, sizeof padded - 1);
  return meta_is(NFT_META_IIFNAME, std::as_bytes(std::span(padded)));
}

NftRule& NftRule::outgoing_device_is(std::string_view name) {
  char padded[IFNAMSIZ] = {};
  name.copy(padded, sizeof padded - 1);
  return meta_is(NFT_META_OIFNAME, std::as_bytes(std::span(padded)));
}

NftRule& NftRule::load(std::uint32_t base, unsigned reg, std::uint32_t offset, std::uint32_t size) {
  Attributes payload;
  payload.be32(NFTA_PAYLOAD_DREG, NFT_REG32_00 + reg);
  payload.be32(NFTA_PAYLOAD_BASE, base);
  payload.be32(NFTA_PAYLOAD_OFFSET, offset);
  payload.be32(NFTA_PAYLOAD_LEN, size);
  add("payload", payload);
  return *this;
}

NftRule& NftRule::load_network(unsigned reg, std::uint32_t offset, std::uint32_t size) {
  return load(NFT_PAYLOAD_NETWORK_HEADER, reg, offset, size);
}

NftRule& NftRule::load_transport(unsigned reg, std::uint32_t offset, std::uint32_t size) {
  return load(NFT_PAYLOAD_TRANSPORT_HEADER, reg, offset, size);
}

NftRule& NftRule::found_in(std::string_view set, unsigned reg) {
  Attributes lookup;
  lookup.text(NFTA_LOOKUP_SET, set);
  lookup.be32(NFTA_LOOKUP_SREG, NFT_REG32_00 + reg);
  add("lookup", lookup);
  return *this;
}

NftRule& NftRule::transport_byte_is(std::uint32_t offset, std::uint8_t mask, std::uint8_t value) {
  load_transport(0, offset, sizeof mask);
  Attributes masked, none, bitwise, data, compare;
  const std::uint8_t zero = 0;
  masked.bytes(NFTA_DATA_VALUE, bytes_of(mask));
  none.bytes(NFTA_DATA_VALUE, bytes_of(zero));
  bitwise.be32(NFTA_BITWISE_SREG, NFT_REG32_00);
  bitwise.be32(NFTA_BITWISE_DREG, NFT_REG32_00);
  bitwise.be32(NFTA_BITWISE_LEN, sizeof mask);
  bitwise.nest(NFTA_BITWISE_MASK, masked);
  bitwise.nest(NFTA_BITWISE_XOR, none);
  add("bitwise", bitwise);
  data.bytes(NFTA_DATA_VALUE, bytes_of(value));
  compare.be32(NFTA_CMP_SREG, NFT_REG32_00);
  compare.be32(NFTA_CMP_OP, NFT_CMP_EQ);
  compare.nest(NFTA_CMP_DATA, data);
  add("cmp", compare);
  return *this;
}

NftRule& NftRule::then(Verdict what) { return verdict(code_of(what)); }

NftRule& NftRule::then_queue(QueueBy how) {
  if (how == QueueBy::expression) {
    Attributes queue;
    queue.be16(NFTA_QUEUE_NUM, 0);
    queue.be16(NFTA_QUEUE_TOTAL, 1);
    add("queue", queue);
    return *this;
  }
  // struct xt_NFQ_info of revision 0, a queue's number, padded as iptables has it.
  const std::uint64_t number_and_padding = 0;
  Attributes target;
  target.text(NFTA_TARGET_NAME, "NFQUEUE");
  target.be32(NFTA_TARGET_REV, 0);
  target.bytes(NFTA_TARGET_INFO, bytes_of(number_and_padding));
  add("target", target);
  return *this;
}

NftRule& NftRule::then_chain(std::string_view chain) { return verdict(static_cast<std::uint32_t>(NFT_GOTO), chain); }

NftRule& NftRule::verdict(std::uint32_t value, std::string_view chain) {
  Attributes code, data, immediate;
  code.be32(NFTA_VERDICT_CODE, value);
  if (!chain.empty()) {
    code.text(NFTA_VERDICT_CHAIN, chain);
  }
  data.nest(NFTA_DATA_VERDICT, code);
  immediate.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
  immediate.nest(NFTA_IMMEDIATE_DATA, data);
  add("immediate", immediate);
  return *this;
}

void NftTransaction::add_table(std::uint8_t family, std::string_view table, bool owned) {
  Attributes a;
  a.text(NFTA_TABLE_NAME, table);
  a.be32(NFTA_TABLE_FLAGS, owned ? kTableOwner : 0);
  messages_.push_back({NFT_MSG_NEWTABLE, NLM_F_CREATE, family, std::move(a)});
}

void NftTransaction::delete_table(std::uint8_t family, std::string_view table) {
  Attributes a;
  a.text(NFTA_TABLE_NAME, table);
  messages_.push_back({NFT_MSG_DELTABLE, 0, family, std::move(a)});
}

void NftTransaction::add_chain(std::uint8_t family, std::string_view table, std::string_view chain, std::uint32_t hook,
                               std::int32_t priority, NftRule::Verdict policy, std::string_view device) {
  Attributes where;
  where.be32(NFTA_HOOK_HOOKNUM, hook);
  where.be32(NFTA_HOOK_PRIORITY, static_cast<std::uint32_t>(priority));
  if (!device.empty()) {
    where.text(NFTA_HOOK_DEV, device);
  }
  Attributes a;
  a.text(NFTA_CHAIN_TABLE, table);
  a.text(NFTA_CHAIN_NAME, chain);
  a.nest(NFTA_CHAIN_HOOK, where);
  a.be32(NFTA_CHAIN_POLICY, code_of(policy));
  a.text(NFTA_CHAIN_TYPE, "filter");
  messages_.push_back({NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, std::move(a)});
}

void NftTransaction::add_inner_chain(std::uint8_t family, std::string_view table, std::string_view chain) {
  Attributes a;
  a.text(NFTA_CHAIN_TABLE, table);
  a.text(NFTA_CHAIN_NAME, chain);
  messages_.push_back({NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, std::move(a)});
}

void NftTransaction::add_set(std::uint8_t family, std::string_view table, std::string_view set, std::uint32_t type,
                             std::uint32_t key_size, const std::vector<std::vector<std::byte>>& elements) {
  Attributes description, a;
  description.be32(NFTA_SET_DESC_SIZE, static_cast<std::uint32_t>(elements.size()));
  a.text(NFTA_SET_TABLE, table);
  a.text(NFTA_SET_NAME, set);
  a.be32(NFTA_SET_FLAGS, 0);
  a.be32(NFTA_SET_KEY_TYPE, type);
  a.be32(NFTA_SET_KEY_LEN, key_size);
  a.be32(NFTA_SET_ID, ++sets_);
  a.nest(NFTA_SET_DESC, description);
  messages_.push_back({NFT_MSG_NEWSET, NLM_F_CREATE, family, std::move(a)});
  for (std::size_t from = 0; from < elements.size(); from += kElementsPerMessage) {
    Attributes list;
    for (std::size_t i = from; i < std::min(elements.size(), from + kElementsPerMessage); ++i) {
      Attributes value, element;
      value.bytes(NFTA_DATA_VALUE, elements[i]);
      element.nest(NFTA_SET_ELEM_KEY, value);
      list.nest(NFTA_LIST_ELEM, element);
    }
    Attributes e;
    e.text(NFTA_SET_ELEM_LIST_TABLE, table);
    e.text(NFTA_SET_ELEM_LIST_SET, set);
    e.be32(NFTA_SET_ELEM_LIST_SET_ID, sets_);
    e.nest(NFTA_SET_ELEM_LIST_ELEMENTS, list);
    messages_.push_back({NFT_MSG_NEWSETELEM, NLM_F_CREATE, family, std::move(e)});
  }
}

void NftTransaction::add_rule(std::uint8_t family, std::string_view table, std::string_view chain,
                              const NftRule& rule) {
  Attributes a;
  a.text(NFTA_RULE_TABLE, table);
  a.text(NFTA_RULE_CHAIN, chain);
  a.nest(NFTA_RULE_EXPRESSIONS, rule.expressions());
  messages_.push_back({NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, std::move(a)});
}

void NftTransaction::flush_chain(std::uint8_t family, std::string_view table, std::string_view chain) {
  Attributes a;
  a.text(NFTA_RULE_TABLE, table);
  a.text(NFTA_RULE_CHAIN, chain);
  messages_.push_back({NFT_MSG_DELRULE, 0, family, std::move(a)});
}

Result<Nftables> Nftables::open() {
  Nftables out;
  // One binding for all: an owned table belongs to the port id (nft_table_owner in nf_tables_api.c).
  FERRY_TRY(out.fd_, open_nfnetlink());
  return out;
}

Result<void> Nftables::commit(const NftTransaction& transaction, std::string_view subject) {
  // The two ends of a batch are messages of no subsystem.
  const auto edge = [&](std::uint8_t type) {
    return encode({.type = type, .family = AF_UNSPEC, .resource = NFNL_SUBSYS_NFTABLES, .sequence = ++sequence_}, {});
  };
  std::vector<std::byte> batch = edge(NFNL_MSG_BATCH_BEGIN);
  for (const auto& m : transaction.messages_) {
    // Only the last is acknowledged; errors come for each message without being asked for.
    const bool last = &m == &transaction.messages_.back();
    const auto one = encode({.subsystem = NFNL_SUBSYS_NFTABLES,
                             .type = static_cast<std::uint8_t>(m.type),
                             .flags = static_cast<std::uint16_t>(m.flags | (last ? NLM_F_ACK : 0)),
                             .family = m.family,
                             .sequence = ++sequence_},
                            m.attributes.data());
    batch.insert(batch.end(), one.begin(), one.end());
  }
  const std::uint32_t last = sequence_;
  const auto end = edge(NFNL_MSG_BATCH_END);
  batch.insert(batch.end(), end.begin(), end.end());
  // The kernel takes a batch as one datagram.
  const int room = static_cast<int>(batch.size() + kAnswerRoom);
  (void)::setsockopt(fd_.get(), SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
  if (::send(fd_.get(), batch.data(), batch.size(), 0) < 0) {
    return sys_fail(fmt::format("send(nf_tables transaction: {})", subject));
  }
  return await_answer(last, subject);
}

Result<void> Nftables::find_table(std::uint8_t family, std::string_view table) {
  Attributes a;
  a.text(NFTA_TABLE_NAME, table);
  const auto message = encode({.subsystem = NFNL_SUBSYS_NFTABLES,
                               .type = NFT_MSG_GETTABLE,
                               .flags = NLM_F_ACK,
                               .family = family,
                               .sequence = ++sequence_},
                              a.data());
  if (::send(fd_.get(), message.data(), message.size(), 0) < 0) {
    return sys_fail(fmt::format("send(nf_tables: table {})", table));
  }
  return await_answer(sequence_, table);
}

Result<void> Nftables::await_answer(std::uint32_t last, std::string_view subject) {
  std::vector<std::byte> answer(kAnswerRoom);
  for (;;) {
    const ssize_t got = ::recv(fd_.get(), answer.data(), answer.size(), 0);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0) {
      return sys_fail(fmt::format("recv(nf_tables answer: {})", subject));
    }
    std::span<const std::byte> rest(answer.data(), static_cast<std::size_t>(got));
    while (rest.size() >= NLMSG_HDRLEN + sizeof(int)) {
      nlmsghdr head{};
      std::memcpy(&head, rest.data(), sizeof head);
      if (head.nlmsg_len < NLMSG_HDRLEN || head.nlmsg_len > rest.size()) {
        return fail(Kind::corrupt, "an answer of nf_tables has a bad length ({})", subject);
      }
      if (head.nlmsg_type == NLMSG_ERROR) {
        int error = 0;
        std::memcpy(&error, rest.data() + NLMSG_HDRLEN, sizeof error);
        if (error != 0) {
          return sys_fail(-error, fmt::format("nf_tables: {}", subject));
        }
        if (head.nlmsg_seq == last) {
          return {};
        }
      }
      rest = rest.subspan(std::min<std::size_t>(rest.size(), NLMSG_ALIGN(head.nlmsg_len)));
    }
  }
}

}  // namespace ferry::sys
