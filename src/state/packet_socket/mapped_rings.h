// The rings of a packet socket as a program sees them: one mapping, the receive ring first.
// Source: Documentation/networking/packet_mmap.rst, linux/if_packet.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "image/proto/sockets.pb.h"

namespace ferry::state::packet_socket {

// Bytes of a ring.
inline std::uint64_t size_of(const pb::PacketRing& ring) { return std::uint64_t{ring.block_size()} * ring.block_nr(); }
// Bytes of the mapping; 0 if there are no rings.
inline std::uint64_t size_of_rings(const pb::PacketSockEntry& entry) {
  return (entry.has_rx_ring() ? size_of(entry.rx_ring()) : 0) + (entry.has_tx_ring() ? size_of(entry.tx_ring()) : 0);
}
// TPACKET_V3 hands out blocks of packets, what is before it, and whatever is sent, frames of one packet.
bool receives_blocks(const pb::PacketSockEntry& entry);
// Whether a restore leads the kernel through as many blocks as it has closed, so that further ones have the numbers
// that they would have had; if those are too many bytes, they have numbers of the first rounds.
inline bool keeps_numbers(const pb::PacketRing& ring, const pb::FerryRingState& state) {
  constexpr std::uint64_t kMostBytes = 256U << 20;
  return state.rx_closed() <= kMostBytes / ring.block_size();
}

class MappedRings {
 public:
  // `entry`: with the rings that the socket has; outlives this.  Errors: corrupt, os.
  static Result<MappedRings> map(int socket, const pb::PacketSockEntry& entry);
  MappedRings(MappedRings&& other) noexcept;
  MappedRings& operator=(MappedRings&&) = delete;
  ~MappedRings();

  [[nodiscard]] std::span<std::byte> bytes() const { return bytes_; }
  [[nodiscard]] std::span<std::byte> rx() const {
    return bytes_.first(entry_->has_rx_ring() ? size_of(entry_->rx_ring()) : 0);
  }
  [[nodiscard]] std::span<std::byte> tx() const { return bytes_.subspan(rx().size()); }
  [[nodiscard]] std::span<std::byte> rx_frame(std::uint32_t i) const { return frame(rx(), entry_->rx_ring(), i); }
  [[nodiscard]] std::span<std::byte> tx_frame(std::uint32_t i) const { return frame(tx(), entry_->tx_ring(), i); }
  // Of a ring that receives_blocks().
  [[nodiscard]] std::span<std::byte> block(std::uint32_t i) const {
    return rx().subspan(std::size_t{i} * entry_->rx_ring().block_size(), entry_->rx_ring().block_size());
  }
  // What precedes the packets of a block: its description, and an area that is the program's own.
  [[nodiscard]] std::size_t block_head() const;

  // Status words, TP_STATUS_*, which the kernel and the program hand frames and blocks to each other with.
  [[nodiscard]] std::uint32_t frame_status(std::span<std::byte> frame) const;
  void set_frame_status(std::span<std::byte> frame, std::uint32_t status) const;
  [[nodiscard]] static std::uint32_t block_status(std::span<std::byte> block);
  static void set_block_status(std::span<std::byte> block, std::uint32_t status);
  [[nodiscard]] static std::uint32_t packets_of(std::span<std::byte> block);
  [[nodiscard]] static std::uint32_t used_of(std::span<std::byte> block);
  [[nodiscard]] static std::uint64_t sequence_of(std::span<std::byte> block);

 private:
  MappedRings(std::span<std::byte> bytes, const pb::PacketSockEntry& entry) : bytes_(bytes), entry_(&entry) {}
  static std::span<std::byte> frame(std::span<std::byte> ring, const pb::PacketRing& sizes, std::uint32_t i);
  [[nodiscard]] std::size_t status_offset() const;

  std::span<std::byte> bytes_;
  const pb::PacketSockEntry* entry_;
};

}  // namespace ferry::state::packet_socket
