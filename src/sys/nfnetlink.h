// Messages of netfilter's netlink protocol (linux/netfilter/nfnetlink.h), which nf_tables and nfnetlink_queue share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

// Builds netlink attributes (struct nlattr), nested ones too.
class Attributes {
 public:
  void bytes(std::uint16_t type, std::span<const std::byte> value);
  void text(std::uint16_t type, std::string_view value);  // with its NUL
  void be16(std::uint16_t type, std::uint16_t value);
  void be32(std::uint16_t type, std::uint32_t value);
  void nest(std::uint16_t type, const Attributes& inner);
  [[nodiscard]] std::span<const std::byte> data() const { return data_; }

 private:
  std::vector<std::byte> data_;
};

struct NfMessage {
  std::uint8_t subsystem = 0, type = 0;
  std::uint16_t flags = 0;     // NLM_F_*; NLM_F_REQUEST is added
  std::uint8_t family = 0;     // AF_UNSPEC, NFPROTO_*
  std::uint16_t resource = 0;  // host order
  std::uint32_t sequence = 0;
};
// The message as it is sent, padded.
std::vector<std::byte> encode(const NfMessage& message, std::span<const std::byte> attributes);

// A bound socket of NETLINK_NETFILTER, for the network namespace of the calling thread.
Result<UniqueFd> open_nfnetlink();

}  // namespace ferry::sys
