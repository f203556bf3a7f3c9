// Tables of nf_tables, changed by transactions: nfnetlink in the kernel's own terms
// (linux/netfilter/nf_tables.h; what nft(8) says of tables, chains, sets and expressions).
//
// No library: Debian has none of the nftables libraries for a static program, and criu is one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "sys/nfnetlink.h"

namespace ferry::sys {

// The expressions of one rule, in the order in which they are evaluated; a comparison or lookup that
// fails ends the rule.  Registers are the 32-bit ones, by number from 0.
class NftRule {
 public:
  // An ICMP error of no use here: packets are dropped without a word.
  enum class Verdict { drop, accept };

  NftRule& mark_is(std::uint32_t mark);
  NftRule& family_is(std::uint8_t family);      // NFPROTO_IPV4, NFPROTO_IPV6 (in a table of family inet)
  NftRule& protocol_is(std::uint8_t protocol);  // IPPROTO_TCP
  NftRule& incoming_device_is(std::string_view name);
  NftRule& outgoing_device_is(std::string_view name);
  NftRule& transport_byte_is(std::uint32_t offset, std::uint8_t mask, std::uint8_t value);
  NftRule& load_network(unsigned reg, std::uint32_t offset, std::uint32_t size);
  NftRule& load_transport(unsigned reg, std::uint32_t offset, std::uint32_t size);
  NftRule& found_in(std::string_view set, unsigned reg);
  NftRule& then(Verdict verdict);
  // To the program that listens to queue 0 (sys/packet_queue.h); dropped if there is none.
  // The kernel has an expression for it (CONFIG_NFT_QUEUE), or iptables' target (CONFIG_NFT_COMPAT and
  // CONFIG_NETFILTER_XT_TARGET_NFQUEUE), or both; one that it lacks makes the transaction fail.
  enum class QueueBy { expression, target };
  NftRule& then_queue(QueueBy how);
  // Goes on in a chain of the same table, and does not come back.
  NftRule& then_chain(std::string_view chain);
  [[nodiscard]] const Attributes& expressions() const { return list_; }

 private:
  void add(std::string_view name, const Attributes& data);
  NftRule& verdict(std::uint32_t code, std::string_view chain = {});
  NftRule& meta_is(std::uint32_t key, std::span<const std::byte> value);
  NftRule& load(std::uint32_t base, unsigned reg, std::uint32_t offset, std::uint32_t size);
  Attributes list_;
};

// What belongs together happens at once or not at all.
class NftTransaction {
 public:
  // `owned`: the kernel removes the table when the Nftables that made it is closed, however its process
  // ends, and lets nobody else change it (NFT_TABLE_F_OWNER, Linux 5.12).
  void add_table(std::uint8_t family, std::string_view table, bool owned);
  void delete_table(std::uint8_t family, std::string_view table);
  // `hook`: NF_INET_LOCAL_IN, NF_ARP_IN…  `device`: for tables of family netdev.
  void add_chain(std::uint8_t family, std::string_view table, std::string_view chain, std::uint32_t hook,
                 std::int32_t priority, NftRule::Verdict policy, std::string_view device = {});
  // One that rules lead to (NftRule::then_chain()).
  void add_inner_chain(std::uint8_t family, std::string_view table, std::string_view chain);
  // `type`: numbers of nft's data types, for those who list it.  All elements have `key_size` bytes.
  void add_set(std::uint8_t family, std::string_view table, std::string_view set, std::uint32_t type,
               std::uint32_t key_size, const std::vector<std::vector<std::byte>>& elements);
  void add_rule(std::uint8_t family, std::string_view table, std::string_view chain, const NftRule& rule);
  // All its rules go, the chain stays.
  void flush_chain(std::uint8_t family, std::string_view table, std::string_view chain);

 private:
  friend class Nftables;
  struct Message {
    std::uint16_t type;
    std::uint16_t flags;
    std::uint8_t family;
    Attributes attributes;
  };
  std::vector<Message> messages_;
  std::uint32_t sets_ = 0;
};

class Nftables {
 public:
  Nftables() = default;
  // For the network namespace of the calling thread.
  static Result<Nftables> open();
  [[nodiscard]] explicit operator bool() const { return static_cast<bool>(fd_); }
  // Errors: what the kernel says of the first message that it does not take.
  Result<void> commit(const NftTransaction& transaction, std::string_view subject);
  // Kind::gone if there is no such table.
  Result<void> find_table(std::uint8_t family, std::string_view table);

 private:
  Result<void> await_answer(std::uint32_t last, std::string_view subject);
  UniqueFd fd_;
  std::uint32_t sequence_ = 0;
};

}  // namespace ferry::sys
