#include <linux/if_packet.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/log.h"
#include "base/zeros.h"
#include "state/packet_socket/loopback.h"
#include "state/packet_socket/mapped_rings.h"
#include "state/packet_socket/rings.h"
#include "tracee/deadline.h"

namespace ferry::state::packet_socket {
namespace {

using std::chrono::milliseconds;

class Collector {
 public:
  Collector(int socket, const sys::PacketLook& look, const MappedRings& rings, pb::PacketSockEntry& entry)
      : socket_(socket), look_(look), rings_(rings), entry_(entry) {}

  // Packets may arrive while we look: what was read counts if the kernel stands where it stood before.
  Result<void> run() {
    constexpr int kMostLooks = 16;
    for (int i = 0; i < kMostLooks; ++i) {
      FERRY_TRY(const sys::PacketPositions before, settled());
      pb::FerryRingState& state = *entry_.mutable_ferry_rings();
      state.Clear();
      FERRY_CHECK(add_positions(before, state));
      add_content(before, state);
      FERRY_TRY(const sys::PacketPositions after, look_.at(socket_));
      if (after == before && is_settled(after)) {
        return {};
      }
    }
    return fail(Kind::unsupported, "packets keep arriving in its ring");
  }

 private:
  [[nodiscard]] bool has_blocks() const { return entry_.has_rx_ring() && receives_blocks(entry_); }

  // Whether the kernel waits for the program to give it that block back.
  [[nodiscard]] bool waits(std::uint32_t block) const {
    return (MappedRings::block_status(rings_.block(block)) & TP_STATUS_USER) != 0;
  }

  // How full an open block is, only the kernel knows, so there must be nothing in it.
  [[nodiscard]] bool is_settled(const sys::PacketPositions& at) const {
    return !has_blocks() || waits(at.rx_block) || MappedRings::packets_of(rings_.block(at.rx_block)) == 0;
  }

  // The kernel closes a block that has packets when its time is over, also of a program that is stopped.
  Result<sys::PacketPositions> settled() const {
    constexpr milliseconds kPause{1}, kMore{500};
    const tracee::Deadline deadline(2 * milliseconds(entry_.rx_ring().retire_tmo()) + kMore);
    for (;;) {
      FERRY_TRY(const sys::PacketPositions at, look_.at(socket_));
      if (at.rx_frame >= std::max(entry_.rx_ring().frame_nr(), 1U) ||
          at.rx_block >= std::max(entry_.rx_ring().block_nr(), 1U) ||
          at.tx_frame >= std::max(entry_.tx_ring().frame_nr(), 1U)) {
        return fail(Kind::unsupported, "the kernel's position in its ring is outside of it");
      }
      if (is_settled(at)) {
        return at;
      }
      if (deadline.passed()) {
        return fail(Kind::unsupported, "packets keep arriving in its ring");
      }
      std::this_thread::sleep_for(kPause);
    }
  }

  Result<void> add_positions(const sys::PacketPositions& at, pb::FerryRingState& state) const {
    state.set_tx_next(at.tx_frame);
    if (!has_blocks()) {
      state.set_rx_next(at.rx_frame);
      return {};
    }
    // Blocks are numbered from 1 on, as they are opened.
    const std::uint32_t count = entry_.rx_ring().block_nr();
    const bool waiting = waits(at.rx_block);
    const std::uint32_t newest = waiting ? (at.rx_block + count - 1) % count : at.rx_block;
    const std::uint64_t closed = MappedRings::sequence_of(rings_.block(newest)) - (waiting ? 0 : 1);
    if (closed % count != at.rx_block || (waiting && closed < count)) {
      return fail(Kind::unsupported, "block {} of its ring has number {}, which is not the kernel's", newest,
                  MappedRings::sequence_of(rings_.block(newest)));
    }
    state.set_rx_closed(closed);
    state.set_rx_waits(waiting);
    return {};
  }

  // What the program may look at: of the receive ring what it was handed and has not given back, of the other one
  // everything, since it may have prepared what it will send.
  void add_content(const sys::PacketPositions& at, pb::FerryRingState& state) const {
    if (has_blocks()) {
      for (std::uint32_t i = 0; i < entry_.rx_ring().block_nr(); ++i) {
        const auto block = rings_.block(i);
        const std::size_t head = rings_.block_head();
        const bool handed = waits(i);
        const std::size_t used = std::clamp<std::size_t>(MappedRings::used_of(block), head, block.size());
        // The head of the open block is the kernel's; the program's own area is in all of them.
        const std::size_t from = !handed && i == at.rx_block ? sizeof(tpacket_block_desc) : 0;
        add(block.subspan(from, (handed ? used : head) - from), state);
      }
    } else {
      for (std::uint32_t i = 0; i < entry_.rx_ring().frame_nr(); ++i) {
        if ((rings_.frame_status(rings_.rx_frame(i)) & TP_STATUS_USER) != 0) {
          add(rings_.rx_frame(i), state);
        }
      }
    }
    for (std::uint32_t i = 0; i < entry_.tx_ring().frame_nr(); ++i) {
      add(rings_.tx_frame(i), state);
    }
  }

  void add(std::span<const std::byte> bytes, pb::FerryRingState& state) const {
    if (all_zeros(bytes)) {
      return;
    }
    const auto offset = static_cast<std::uint64_t>(bytes.data() - rings_.bytes().data());
    const int last = state.parts_size() - 1;
    const bool joins = last >= 0 && state.parts(last).offset() + state.parts(last).content().size() == offset;
    pb::FerryRingPart& part = joins ? *state.mutable_parts(last) : *state.add_parts();
    if (!joins) {
      part.set_offset(offset);
    }
    part.mutable_content()->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  int socket_;
  const sys::PacketLook& look_;
  const MappedRings& rings_;
  pb::PacketSockEntry& entry_;
};

}  // namespace

Result<void> collect_rings(int socket, const std::string& subject, const sys::PacketLook& look,
                           pb::PacketSockEntry& entry) {
  FERRY_TRY(const MappedRings rings, MappedRings::map(socket, entry).during("{}", subject));
  FERRY_CHECK(Collector(socket, look, rings, entry).run().during("{}", subject));
  const pb::FerryRingState& state = entry.ferry_rings();
  if (state.rx_next() == 0 && state.rx_closed() == 0 && state.tx_next() == 0) {
    return {};
  }
  if (entry.has_rx_ring() && !keeps_numbers(entry.rx_ring(), state)) {
    log::warning("{}: after a restore the blocks of its ring are numbered from the first rounds on", subject);
  }
  FERRY_TRY(const Loopback loopback, Loopback::of(socket));
  if (!loopback.is_up) {
    return fail(Kind::unsupported,
                "{}: it has a ring that packets went through, and to carry that over takes the loopback interface, "
                "which is down in its network",
                subject);
  }
  return {};
}

}  // namespace ferry::state::packet_socket
