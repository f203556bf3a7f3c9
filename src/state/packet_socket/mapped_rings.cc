#include "state/packet_socket/mapped_rings.h"

#include <linux/if_packet.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <utility>

namespace ferry::state::packet_socket {
namespace {

constexpr std::size_t align(std::size_t size) { return (size + 7) / 8 * 8; }

// The kernel writes these words as we look.
std::atomic_ref<std::uint32_t> word(std::span<std::byte> at, std::size_t offset) {
  return std::atomic_ref<std::uint32_t>(*reinterpret_cast<std::uint32_t*>(at.data() + offset));
}
std::uint32_t load(std::span<std::byte> at, std::size_t offset) {
  return word(at, offset).load(std::memory_order_acquire);
}

// What the kernel accepts (packet_set_ring in net/packet/af_packet.c); an image may say anything.
Result<void> check(const pb::PacketRing& ring, std::uint32_t version) {
  const std::size_t head = version == TPACKET_V1   ? std::size_t{TPACKET_HDRLEN}
                           : version == TPACKET_V2 ? std::size_t{TPACKET2_HDRLEN}
                                                   : std::size_t{TPACKET3_HDRLEN};
  const std::uint64_t fit = ring.frame_size() == 0 ? 0 : ring.block_size() / ring.frame_size();
  if (ring.block_size() % 4096 != 0 || ring.frame_size() < head || ring.frame_size() % TPACKET_ALIGNMENT != 0 ||
      fit == 0 || fit * ring.block_nr() != ring.frame_nr() ||
      size_of(ring) > std::numeric_limits<std::uint32_t>::max() ||
      sizeof(tpacket_block_desc) + align(ring.sizeof_priv()) >= ring.block_size()) {
    return fail(Kind::corrupt, "a ring of {} blocks of {} bytes with {} frames of {} bytes", ring.block_nr(),
                ring.block_size(), ring.frame_nr(), ring.frame_size());
  }
  return {};
}

}  // namespace

bool receives_blocks(const pb::PacketSockEntry& entry) { return entry.version() == TPACKET_V3; }

Result<MappedRings> MappedRings::map(int socket, const pb::PacketSockEntry& entry) {
  if (entry.version() > TPACKET_V3) {
    return fail(Kind::unsupported, "a ring of version {}", entry.version());
  }
  if (entry.has_rx_ring()) {
    FERRY_CHECK(check(entry.rx_ring(), entry.version()));
  }
  if (entry.has_tx_ring()) {
    FERRY_CHECK(check(entry.tx_ring(), entry.version()));
  }
  const std::uint64_t size = size_of_rings(entry);
  void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, socket, 0);
  if (at == MAP_FAILED) {
    return sys_fail(fmt::format("mmap(rings of {} bytes)", size));
  }
  return MappedRings({static_cast<std::byte*>(at), size}, entry);
}

MappedRings::MappedRings(MappedRings&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})), entry_(other.entry_) {}

MappedRings::~MappedRings() {
  if (!bytes_.empty()) {
    ::munmap(bytes_.data(), bytes_.size());
  }
}

std::span<std::byte> MappedRings::frame(std::span<std::byte> ring, const pb::PacketRing& sizes, std::uint32_t i) {
  // A frame does not reach over the end of its block.
  const std::uint32_t in_block = sizes.block_size() / sizes.frame_size();
  const std::size_t at =
      std::size_t{i / in_block} * sizes.block_size() + std::size_t{i % in_block} * sizes.frame_size();
  return ring.subspan(at, sizes.frame_size());
}

std::size_t MappedRings::block_head() const {
  return align(sizeof(tpacket_block_desc)) + align(entry_->rx_ring().sizeof_priv());
}

std::size_t MappedRings::status_offset() const {
  // The word of the first version is as long as a pointer; what is used of it is its lower half.
  static_assert(offsetof(tpacket_hdr, tp_status) == 0 && offsetof(tpacket2_hdr, tp_status) == 0);
  return entry_->version() == TPACKET_V3 ? offsetof(tpacket3_hdr, tp_status) : 0;
}

std::uint32_t MappedRings::frame_status(std::span<std::byte> frame) const { return load(frame, status_offset()); }

void MappedRings::set_frame_status(std::span<std::byte> frame, std::uint32_t status) const {
  word(frame, status_offset()).store(status, std::memory_order_release);
}

std::uint32_t MappedRings::block_status(std::span<std::byte> block) {
  return load(block, offsetof(tpacket_block_desc, hdr.bh1.block_status));
}

void MappedRings::set_block_status(std::span<std::byte> block, std::uint32_t status) {
  word(block, offsetof(tpacket_block_desc, hdr.bh1.block_status)).store(status, std::memory_order_release);
}

std::uint32_t MappedRings::packets_of(std::span<std::byte> block) {
  return load(block, offsetof(tpacket_block_desc, hdr.bh1.num_pkts));
}

std::uint32_t MappedRings::used_of(std::span<std::byte> block) {
  return load(block, offsetof(tpacket_block_desc, hdr.bh1.blk_len));
}

std::uint64_t MappedRings::sequence_of(std::span<std::byte> block) {
  std::uint64_t out = 0;
  std::memcpy(&out, block.data() + offsetof(tpacket_block_desc, hdr.bh1.seq_num), sizeof out);
  return out;
}

}  // namespace ferry::state::packet_socket
