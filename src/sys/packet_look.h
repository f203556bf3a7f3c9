// Where the kernel is in the rings of a packet socket, which no call tells: it is read out of the kernel, at the
// offsets that its own type information (BTF) gives.
// Source: Documentation/networking/packet_mmap.rst, Documentation/bpf/bpf_iterators.rst.
#pragma once

#include <cstdint>
#include <utility>

#include "base/error.h"
#include "base/unique_fd.h"

namespace ferry::sys {

struct PacketPositions {
  std::uint32_t rx_frame = 0;  // TPACKET_V1 and V2: the frame that the next packet is put into
  std::uint32_t rx_block = 0;  // TPACKET_V3: the block that is open, or that it waits for
  std::uint32_t tx_frame = 0;  // the frame that is sent next
  bool operator==(const PacketPositions&) const = default;
};

class PacketLook {
 public:
  // Errors: unsupported or denied, where this kernel does not do that or not for us.
  static Result<PacketLook> open();
  // Of a packet socket in the calling process's table.
  [[nodiscard]] Result<PacketPositions> at(int socket) const;

 private:
  explicit PacketLook(UniqueFd program) : program_(std::move(program)) {}
  UniqueFd program_;
};

}  // namespace ferry::sys
