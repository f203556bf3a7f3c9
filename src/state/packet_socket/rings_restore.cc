#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "state/packet_socket/loopback.h"
#include "state/packet_socket/mapped_rings.h"
#include "state/packet_socket/rings.h"
#include "state/socket/options.h"
#include "tracee/deadline.h"

namespace ferry::state::packet_socket {
namespace {

constexpr std::uint16_t kType = 0x88b5;  // for local experiments (IEEE 802, "Local Experimental EtherType 1")
constexpr std::chrono::seconds kWait{5};

Result<void> make(int socket, int option, const pb::PacketRing& ring, std::uint32_t version, const char* text) {
  tpacket_req3 request{};
  request.tp_block_size = ring.block_size();
  request.tp_block_nr = ring.block_nr();
  request.tp_frame_size = ring.frame_size();
  request.tp_frame_nr = ring.frame_nr();
  if (option == PACKET_RX_RING) {
    request.tp_retire_blk_tov = ring.retire_tmo();
    request.tp_sizeof_priv = ring.sizeof_priv();
    request.tp_feature_req_word = ring.features();
  }
  const socklen_t size = version == TPACKET_V3 ? sizeof(tpacket_req3) : sizeof(tpacket_req);
  if (::setsockopt(socket, SOL_PACKET, option, &request, size) != 0) {
    return sys_fail(fmt::format("setsockopt({}, {} blocks of {} bytes)", text, ring.block_nr(), ring.block_size()));
  }
  return {};
}

template <class Done>
Result<void> await(const Done& done, std::string_view what) {
  constexpr std::chrono::microseconds kPause{100};
  // What is sent over the loopback interface mostly has arrived when the call returns.
  for (const tracee::Deadline deadline(kWait); !done();) {
    if (deadline.passed()) {
      return fail(Kind::os, "{} s passed, and {}", kWait.count(), what);
    }
    std::this_thread::sleep_for(kPause);
  }
  return {};
}

// Leads the kernel round new rings to where it was in the old ones.
class Guide {
 public:
  Guide(int socket, const MappedRings& rings, const pb::PacketSockEntry& entry, const Loopback& loopback)
      : socket_(socket), rings_(rings), entry_(entry), loopback_(loopback) {}

  Result<void> send(std::uint32_t count) {
    if (count >= entry_.tx_ring().frame_nr()) {
      return fail(Kind::corrupt, "frame {} of a ring of {}", count, entry_.tx_ring().frame_nr());
    }
    const std::vector<std::byte> packet = packet_to_send();
    for (std::uint32_t i = 0; i < count; ++i) {
      FERRY_CHECK(put(rings_.tx_frame(i), packet));
    }
    const sockaddr_ll to = address();
    const auto sent = [&] {
      // Sends as many as it can at once.
      (void)::sendto(socket_, nullptr, 0, MSG_DONTWAIT, reinterpret_cast<const sockaddr*>(&to), sizeof to);
      for (std::uint32_t i = 0; i < count; ++i) {
        if (rings_.frame_status(rings_.tx_frame(i)) != TP_STATUS_AVAILABLE) {
          return false;
        }
      }
      return true;
    };
    return await(sent, fmt::format("not all of {} packets were sent from the ring", count));
  }

  Result<void> receive_frames(int sender, std::uint32_t count) {
    if (count >= entry_.rx_ring().frame_nr()) {
      return fail(Kind::corrupt, "frame {} of a ring of {}", count, entry_.rx_ring().frame_nr());
    }
    FERRY_CHECK(bind());
    for (std::uint32_t i = 0; i < count; ++i) {
      FERRY_CHECK(send_one(sender, 1));
      const auto arrived = [&] { return (rings_.frame_status(rings_.rx_frame(i)) & TP_STATUS_USER) != 0; };
      FERRY_CHECK(await(arrived, fmt::format("packet {} of {} has not arrived in the ring", i, count)));
    }
    return {};
  }

  // `waits`: the kernel found the block behind them in use.
  Result<void> receive_blocks(int sender, std::uint64_t count, bool waits) {
    const std::uint32_t blocks = entry_.rx_ring().block_nr();
    FERRY_CHECK(bind());
    for (std::uint64_t i = 0; i < count; ++i) {
      const auto block = rings_.block(static_cast<std::uint32_t>(i % blocks));
      const bool last = i + 1 == count;
      FERRY_CHECK(fill(sender, block, last && !waits));
      if (!waits || count - i > blocks) {
        MappedRings::set_block_status(block, TP_STATUS_KERNEL);
      }
    }
    return {};
  }

 private:
  [[nodiscard]] sockaddr_ll address() const {
    sockaddr_ll out{};
    out.sll_family = AF_PACKET;
    out.sll_protocol = htons(kType);
    out.sll_ifindex = loopback_.index;
    out.sll_halen = 6;
    return out;
  }

  Result<void> bind() {
    const sockaddr_ll own = address();
    if (::bind(socket_, reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0) {
      return sys_fail("bind(packet socket, lo)");
    }
    return {};
  }

  Result<void> send_one(int sender, std::size_t size) {
    packet_.resize(std::max(packet_.size(), size));
    const sockaddr_ll to = address();
    if (::sendto(sender, packet_.data(), size, 0, reinterpret_cast<const sockaddr*>(&to), sizeof to) !=
        static_cast<ssize_t>(size)) {
      return sys_fail(fmt::format("sendto(packet socket, {} bytes over lo)", size));
    }
    return {};
  }

  // Until the kernel has closed the block: because the next packet did not fit and went into the next one, or, so
  // that there is no such packet, because its time is over.
  Result<void> fill(int sender, std::span<std::byte> block, bool leave_next_empty) {
    const auto closed = [&] { return (MappedRings::block_status(block) & TP_STATUS_USER) != 0; };
    // One that is as large as a block goes into the next one even if this one is empty (the comparison in
    // __packet_lookup_frame_in_block of net/packet/af_packet.c).
    const std::size_t size = leave_next_empty ? 1 : std::min<std::size_t>(loopback_.mtu, block.size());
    // A packet that has fewer than this many bytes before the block's end does not fit; each takes more than one.
    for (std::size_t sent = 0; !closed(); ++sent) {
      const std::uint32_t before = MappedRings::packets_of(block);
      if (leave_next_empty && before > 0) {
        return await(closed, "the kernel has not closed a block of the ring");
      }
      if (sent > block.size()) {
        return fail(Kind::os, "{} packets of {} bytes do not fill a block of {} bytes", sent, size, block.size());
      }
      FERRY_CHECK(send_one(sender, size));
      const auto arrived = [&] { return closed() || MappedRings::packets_of(block) != before; };
      FERRY_CHECK(await(arrived, "a packet has not arrived in the ring"));
    }
    return {};
  }

  // Bytes of the header for virtual devices that precedes each packet.
  [[nodiscard]] std::size_t vnet_header() const {
    constexpr int kSizeOption = 24;  // PACKET_VNET_HDR_SZ, since Linux 6.6; older headers lack it
    constexpr std::size_t kOnlySize = 10;
    if (!entry_.vnet_hdr()) {
      return 0;
    }
    const auto size = socket::get_int(socket_, SOL_PACKET, kSizeOption, "PACKET_VNET_HDR_SZ");
    return size.has_value() ? static_cast<std::size_t>(*size) : kOnlySize;
  }

  // As the program would put it into a frame: a header if it makes its own, before that one for virtual devices.
  [[nodiscard]] std::vector<std::byte> packet_to_send() const {
    constexpr std::size_t kEthernet = 14, kTypeAt = 12;
    const std::size_t before = vnet_header();
    std::vector<std::byte> out(before + (entry_.type() == SOCK_RAW ? kEthernet : 1));
    if (entry_.type() == SOCK_RAW) {
      const std::uint16_t type = htons(kType);
      std::memcpy(out.data() + before + kTypeAt, &type, sizeof type);
    }
    return out;
  }

  Result<void> put(std::span<std::byte> frame, std::span<const std::byte> packet) {
    std::size_t data = 0;
    const auto length = static_cast<std::uint32_t>(packet.size());
    const auto write_head = [&](auto head, std::size_t head_size) {
      head.tp_len = length;
      data = head_size - sizeof(sockaddr_ll);  // "Frame structure" in packet_mmap.rst
      std::memcpy(frame.data(), &head, sizeof head);
    };
    switch (entry_.version()) {
      case TPACKET_V1:
        write_head(tpacket_hdr{}, TPACKET_HDRLEN);
        break;
      case TPACKET_V2:
        write_head(tpacket2_hdr{}, TPACKET2_HDRLEN);
        break;
      default:
        write_head(tpacket3_hdr{}, TPACKET3_HDRLEN);
        break;
    }
    if (data + packet.size() > frame.size()) {
      return fail(Kind::unsupported, "a frame of {} bytes has no room for a packet of {}", frame.size(), packet.size());
    }
    std::memcpy(frame.data() + data, packet.data(), packet.size());
    rings_.set_frame_status(frame, TP_STATUS_SEND_REQUEST);
    return {};
  }

  int socket_;
  const MappedRings& rings_;
  const pb::PacketSockEntry& entry_;
  const Loopback& loopback_;
  std::vector<std::byte> packet_;
};

// How many blocks the kernel is to be led through.
Result<std::uint64_t> blocks_to_close(const pb::PacketRing& ring, const pb::FerryRingState& state) {
  if (keeps_numbers(ring, state)) {
    if (state.rx_waits() && state.rx_closed() < ring.block_nr()) {
      return fail(Kind::corrupt, "only {} of {} blocks were closed, and none is open", state.rx_closed(),
                  ring.block_nr());
    }
    return state.rx_closed();
  }
  return state.rx_closed() % ring.block_nr() + (state.rx_waits() ? ring.block_nr() : 0);
}

Result<void> lead(int socket, Inside& inside, const pb::PacketSockEntry& entry, const MappedRings& rings) {
  const pb::FerryRingState& state = entry.ferry_rings();
  if (state.rx_next() == 0 && state.rx_closed() == 0 && state.tx_next() == 0) {
    return {};
  }
  FERRY_TRY(const Loopback loopback, Loopback::of(socket));
  if (!loopback.is_up) {
    return fail(Kind::unsupported, "the loopback interface is down, over which the kernel is led through the ring");
  }
  Guide guide(socket, rings, entry, loopback);
  if (state.tx_next() != 0) {  // first: it receives nothing yet, so not these packets either
    FERRY_CHECK(guide.send(state.tx_next()));
  }
  if (state.rx_next() != 0 || state.rx_closed() != 0) {
    if (!entry.has_rx_ring()) {
      return fail(Kind::corrupt, "a position in a receive ring that there is not");
    }
    FERRY_TRY(const UniqueFd sender,
              inside.get<UniqueFd>([] { return state::socket::make(AF_PACKET, SOCK_DGRAM, 0); }));
    if (receives_blocks(entry)) {
      FERRY_TRY(const std::uint64_t count, blocks_to_close(entry.rx_ring(), state));
      FERRY_CHECK(guide.receive_blocks(sender.get(), count, state.rx_waits()));
    } else {
      FERRY_CHECK(guide.receive_frames(sender.get(), state.rx_next()));
    }
    // Reading the counters sets them to zero (packet(7), PACKET_STATISTICS).
    tpacket_stats_v3 counted{};
    socklen_t size = sizeof counted;
    if (::getsockopt(socket, SOL_PACKET, PACKET_STATISTICS, &counted, &size) != 0) {
      return sys_fail("getsockopt(PACKET_STATISTICS)");
    }
  }
  return {};
}

void clear(std::span<std::byte> bytes) { std::fill(bytes.begin(), bytes.end(), std::byte{0}); }

Result<void> fill(const pb::PacketSockEntry& entry, const MappedRings& rings) {
  const pb::FerryRingState& state = entry.ferry_rings();
  if (entry.has_rx_ring() && receives_blocks(entry)) {
    const std::uint32_t blocks = entry.rx_ring().block_nr();
    for (std::uint32_t i = 0; i < blocks; ++i) {
      // What the kernel has written at the head of the open block stays.
      const bool open = !state.rx_waits() && i == state.rx_closed() % blocks;
      clear(rings.block(i).subspan(open ? sizeof(tpacket_block_desc) : 0));
    }
  } else {
    clear(rings.rx());
  }
  clear(rings.tx());
  for (const pb::FerryRingPart& part : state.parts()) {
    const std::string& content = part.content();
    if (part.offset() > rings.bytes().size() || content.size() > rings.bytes().size() - part.offset()) {
      return fail(Kind::corrupt, "a part of a ring reaches over its end");
    }
    std::memcpy(rings.bytes().data() + part.offset(), content.data(), content.size());
  }
  for (std::uint32_t i = 0; i < entry.tx_ring().frame_nr(); ++i) {
    // What the device had counts as sent, and nobody here would say so.
    if ((rings.frame_status(rings.tx_frame(i)) & TP_STATUS_SENDING) != 0) {
      rings.set_frame_status(rings.tx_frame(i), TP_STATUS_AVAILABLE);
    }
  }
  return {};
}

}  // namespace

Result<void> restore_rings(int socket, const std::string& subject, Inside& inside, const pb::PacketSockEntry& entry) {
  if (entry.has_rx_ring()) {
    FERRY_CHECK(make(socket, PACKET_RX_RING, entry.rx_ring(), entry.version(), "PACKET_RX_RING").during("{}", subject));
  }
  if (entry.has_tx_ring()) {
    FERRY_CHECK(make(socket, PACKET_TX_RING, entry.tx_ring(), entry.version(), "PACKET_TX_RING").during("{}", subject));
  }
  FERRY_TRY(const MappedRings rings, MappedRings::map(socket, entry).during("{}", subject));
  FERRY_CHECK(lead(socket, inside, entry, rings).during("{}", subject));
  return fill(entry, rings).during("{}", subject);
}

}  // namespace ferry::state::packet_socket
