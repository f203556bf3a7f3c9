// Rings that a packet socket shares with the kernel (Documentation/networking/packet_mmap.rst), over the loopback
// interface.
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "live/live.h"

namespace ferry::live {
namespace {

// One for each test, so that a packet of another one is no packet of this.
enum Type : std::uint16_t {
  kFrames = 0x9a01,
  kOldFrames,
  kBlocks,
  kWaiting,
  kSent,
  kOldSent,
  kBlocksSent,
  kBoth,
  kShared
};
constexpr std::uint32_t kFrameSize = 256, kFrameCount = 64;
constexpr int kPatience = 5000;  // ms

// In which nobody else is on the loopback interface.
[[nodiscard]] bool has_own_network() {
  if (::unshare(CLONE_NEWNET) != 0) {
    return false;
  }
  ifreq loopback{};
  std::strcpy(loopback.ifr_name, "lo");
  loopback.ifr_flags = IFF_UP | IFF_RUNNING | IFF_LOOPBACK;
  const int fd = ::socket(AF_INET, SOCK_DGRAM, 0);
  const bool up = ::ioctl(fd, SIOCSIFFLAGS, &loopback) == 0;
  ::close(fd);
  return up;
}

sockaddr_ll over_loopback(std::uint16_t type) {
  sockaddr_ll out{};
  out.sll_family = AF_PACKET;
  out.sll_protocol = htons(type);
  out.sll_ifindex = static_cast<int>(::if_nametoindex("lo"));
  out.sll_halen = 6;
  return out;
}

int bound_socket(int type, std::uint16_t protocol, int version) {
  const int fd = ::socket(AF_PACKET, type, 0);
  EXPECT_GE(fd, 0);
  EXPECT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version), 0);
  const sockaddr_ll own = over_loopback(protocol);
  EXPECT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof own), 0);
  return fd;
}

void make_ring(int fd, int option) {
  const tpacket_req request{4096, kFrameCount * kFrameSize / 4096, kFrameSize, kFrameCount};
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, option, &request, sizeof request), 0);
}

char* mapped(int fd, std::size_t size) {
  void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  EXPECT_NE(at, MAP_FAILED);
  return static_cast<char*>(at);
}

// Numbered packets of one type, without a ring.
class Sender {
 public:
  explicit Sender(std::uint16_t type) : to_(over_loopback(type)), fd_(::socket(AF_PACKET, SOCK_DGRAM, 0)) {}
  void send(std::uint32_t count, std::size_t size = sizeof(std::uint32_t)) {
    std::string packet(size, 'x');
    for (std::uint32_t i = 0; i < count; ++i, ++next_) {
      std::memcpy(packet.data(), &next_, sizeof next_);
      ASSERT_EQ(::sendto(fd_, packet.data(), packet.size(), 0, reinterpret_cast<const sockaddr*>(&to_), sizeof to_),
                static_cast<ssize_t>(packet.size()));
    }
  }

 private:
  sockaddr_ll to_;
  int fd_;
  std::uint32_t next_ = 0;
};

template <class Head>
volatile auto& status_of(char* frame) {
  return reinterpret_cast<volatile Head*>(frame)->tp_status;
}

// Goes round a receive ring as programs do: frame by frame, each when it is the program's.
template <class Head>
class Reader {
 public:
  Reader(int fd, char* ring) : fd_(fd), ring_(ring) {}
  // The numbers of the next packets.
  std::vector<std::uint32_t> read(std::size_t count) {
    std::vector<std::uint32_t> out;
    while (out.size() < count) {
      char* const frame = ring_ + at_ * kFrameSize;
      if ((status_of<Head>(frame) & TP_STATUS_USER) == 0) {
        pollfd ready{fd_, POLLIN, 0};
        if (::poll(&ready, 1, kPatience) != 1) {
          ADD_FAILURE() << "no packet comes; at frame " << at_;
          return out;
        }
        EXPECT_NE(status_of<Head>(frame) & TP_STATUS_USER, 0U) << "a packet is elsewhere than in frame " << at_;
        if (::testing::Test::HasFailure()) {
          return out;
        }
      }
      std::uint32_t number = 0;
      std::memcpy(&number, frame + reinterpret_cast<Head*>(frame)->tp_net, sizeof number);
      out.push_back(number);
      status_of<Head>(frame) = TP_STATUS_KERNEL;
      at_ = (at_ + 1) % kFrameCount;
    }
    return out;
  }

 private:
  int fd_;
  char* ring_;
  std::size_t at_ = 0;
};

std::vector<std::uint32_t> numbers(std::uint32_t first, std::size_t count) {
  std::vector<std::uint32_t> out(count);
  std::iota(out.begin(), out.end(), first);
  return out;
}

bool is_nothing_waiting(int fd) {
  pollfd ready{fd, POLLIN, 0};
  return ::poll(&ready, 1, 0) == 0;
}

template <class Head>
void receive(int version, std::uint16_t type) {
  const int fd = bound_socket(SOCK_DGRAM, type, version);
  make_ring(fd, PACKET_RX_RING);
  Reader<Head> reader(fd, mapped(fd, kFrameCount * kFrameSize));
  Sender sender(type);
  // Once round, and then some of which not all were read.
  sender.send(50);
  EXPECT_EQ(reader.read(50), numbers(0, 50));
  sender.send(30);
  EXPECT_EQ(reader.read(20), numbers(50, 20));
  checkpoint_here();
  EXPECT_EQ(reader.read(10), numbers(70, 10)) << "packets that waited";
  EXPECT_TRUE(is_nothing_waiting(fd));
  sender.send(60);
  EXPECT_EQ(reader.read(60), numbers(80, 60));
  sender.send(40);
  EXPECT_EQ(reader.read(40), numbers(140, 40));
}

LIVE_TEST(PacketRing, ReceivesOnInTheSameFrame) {
  ASSERT_TRUE(has_own_network());
  receive<tpacket2_hdr>(TPACKET_V2, kFrames);
}

LIVE_TEST(PacketRing, ReceivesOnInTheFirstVersion) {
  ASSERT_TRUE(has_own_network());
  receive<tpacket_hdr>(TPACKET_V1, kOldFrames);
}

LIVE_TEST(PacketRing, IsFullAndKeepsItsPacketsOptionsAndFilter) {
  ASSERT_TRUE(has_own_network());
  constexpr std::uint16_t kType = 0x9a11;
  const int fd = ::socket(AF_PACKET, SOCK_RAW, 0);
  const int version = TPACKET_V2, reserve = 16, on = 1, threshold = 100;
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version), 0);
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_RESERVE, &reserve, sizeof reserve), 0);
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_LOSS, &on, sizeof on), 0);
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_COPY_THRESH, &threshold, sizeof threshold), 0);
  // Only packets that are longer than an Ethernet header and three bytes.
  sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0), BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 17, 0, 1),
                        BPF_STMT(BPF_RET | BPF_K, 0xffff), BPF_STMT(BPF_RET | BPF_K, 0)};
  const sock_fprog program{4, code};
  ASSERT_EQ(::setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program), 0);
  make_ring(fd, PACKET_RX_RING);
  const sockaddr_ll own = over_loopback(kType);
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof own), 0);
  Reader<tpacket2_hdr> reader(fd, mapped(fd, kFrameCount * kFrameSize));
  Sender sender(kType);
  sender.send(10);
  EXPECT_EQ(reader.read(10), numbers(0, 10));
  sender.send(kFrameCount);
  checkpoint_here();
  EXPECT_EQ(reader.read(kFrameCount), numbers(10, kFrameCount));
  Sender others(kType);
  others.send(3, 1);
  sender.send(5);
  EXPECT_EQ(reader.read(5), numbers(10 + kFrameCount, 5)) << "and none of those that the filter keeps out";
  tpacket_stats counted{};
  socklen_t size = sizeof counted;
  ASSERT_EQ(::getsockopt(fd, SOL_PACKET, PACKET_STATISTICS, &counted, &size), 0);
  EXPECT_EQ(counted.tp_drops, 0U);
  for (const auto& [option, value] : {std::pair(PACKET_RESERVE, reserve), std::pair(PACKET_LOSS, on)}) {
    int after = -1;
    size = sizeof after;
    ASSERT_EQ(::getsockopt(fd, SOL_PACKET, option, &after, &size), 0);
    EXPECT_EQ(after, value) << option;
  }
}

// --- TPACKET_V3

constexpr std::uint32_t kBlockSize = 8192, kBlockCount = 4;

int block_socket(std::uint16_t type, std::uint32_t time) {
  const int fd = bound_socket(SOCK_DGRAM, type, TPACKET_V3);
  tpacket_req3 request{kBlockSize, kBlockCount, 2048, kBlockSize / 2048 * kBlockCount, time, 24, 0};
  EXPECT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof request), 0);
  return fd;
}

class BlockReader {
 public:
  BlockReader(int fd, char* ring) : fd_(fd), ring_(ring) {}
  // The numbers in the next block, which it gives back.
  std::vector<std::uint32_t> read() {
    auto* const block = reinterpret_cast<tpacket_block_desc*>(ring_ + at_ * kBlockSize);
    volatile std::uint32_t& status = block->hdr.bh1.block_status;
    if ((status & TP_STATUS_USER) == 0) {
      pollfd ready{fd_, POLLIN, 0};
      EXPECT_EQ(::poll(&ready, 1, kPatience), 1) << "no block comes; at " << at_;
      EXPECT_NE(status & TP_STATUS_USER, 0U) << "another block than " << at_ << " is ready";
    }
    sequence_ = std::exchange(anew_, false) ? block->hdr.bh1.seq_num : sequence_ + 1;
    EXPECT_EQ(block->hdr.bh1.seq_num, sequence_);
    EXPECT_EQ(block->version, static_cast<std::uint32_t>(TPACKET_V3));
    std::vector<std::uint32_t> out;
    const char* packet = reinterpret_cast<char*>(block) + block->hdr.bh1.offset_to_first_pkt;
    for (std::uint32_t i = 0; i < block->hdr.bh1.num_pkts; ++i) {
      const auto* const head = reinterpret_cast<const tpacket3_hdr*>(packet);
      std::uint32_t number = 0;
      std::memcpy(&number, packet + head->tp_net, sizeof number);
      out.push_back(number);
      packet += head->tp_next_offset;
    }
    status = TP_STATUS_KERNEL;
    at_ = (at_ + 1) % kBlockCount;
    return out;
  }
  std::vector<std::uint32_t> read_packets(std::size_t count) {
    std::vector<std::uint32_t> out;
    while (out.size() < count && !::testing::Test::HasFailure()) {
      const auto more = read();
      out.insert(out.end(), more.begin(), more.end());
    }
    return out;
  }
  // The next block may have any number.
  void count_anew() { anew_ = true; }
  [[nodiscard]] std::uint64_t last_number() const { return sequence_; }
  [[nodiscard]] char* own_area(std::size_t block) const {
    return ring_ + block * kBlockSize +
           reinterpret_cast<tpacket_block_desc*>(ring_ + block * kBlockSize)->offset_to_priv;
  }

 private:
  int fd_;
  char* ring_;
  std::size_t at_ = 0;
  std::uint64_t sequence_ = 0;
  bool anew_ = false;
};

LIVE_TEST(PacketRing, ReceivesOnInTheSameBlock) {
  ASSERT_TRUE(has_own_network());
  const int fd = block_socket(kBlocks, 20);
  BlockReader reader(fd, mapped(fd, kBlockSize * kBlockCount));
  Sender sender(kBlocks);
  for (std::uint32_t i = 0; i < 5; ++i) {
    sender.send(3);
    EXPECT_EQ(reader.read_packets(3), numbers(3 * i, 3));
  }
  std::strcpy(reader.own_area(0), "the program's own");
  sender.send(4);  // in the open block: it is closed before long
  checkpoint_here();
  EXPECT_EQ(reader.read_packets(4), numbers(15, 4));
  EXPECT_STREQ(reader.own_area(0), "the program's own");
  for (std::uint32_t i = 0; i < 7; ++i) {
    sender.send(20, 1000);  // in several blocks
    EXPECT_EQ(reader.read_packets(20), numbers(19 + 20 * i, 20));
  }
}

LIVE_TEST(PacketRing, ReceivesOnBehindTheFirstBlock) {
  ASSERT_TRUE(has_own_network());
  constexpr std::uint16_t kType = 0x9a15;
  const int fd = block_socket(kType, 20);
  BlockReader reader(fd, mapped(fd, kBlockSize * kBlockCount));
  Sender sender(kType);
  sender.send(2);
  EXPECT_EQ(reader.read_packets(2), numbers(0, 2));
  checkpoint_here();
  EXPECT_TRUE(is_nothing_waiting(fd));
  sender.send(2);
  EXPECT_EQ(reader.read_packets(2), numbers(2, 2));
  checkpoint_here();
  sender.send(2);
  EXPECT_EQ(reader.read_packets(2), numbers(4, 2));
}

LIVE_TEST(PacketRing, WaitsForABlockThatTheProgramHas) {
  ASSERT_TRUE(has_own_network());
  const int fd = block_socket(kWaiting, 20);
  BlockReader reader(fd, mapped(fd, kBlockSize * kBlockCount));
  Sender sender(kWaiting);
  sender.send(2);
  EXPECT_EQ(reader.read_packets(2), numbers(0, 2));
  // Seven go into a block, so the last of these find none.
  constexpr std::uint32_t kFit = 7;
  sender.send(kBlockCount * kFit, 1000);
  sender.send(5, 1000);
  checkpoint_here();
  EXPECT_EQ(reader.read_packets(kBlockCount * kFit), numbers(2, kBlockCount * kFit));
  sender.send(2);
  const std::uint32_t next = 2 + kBlockCount * kFit + 5;
  EXPECT_EQ(reader.read_packets(2), numbers(next, 2));
}

// More bytes than a restore leads the kernel through: what is kept is the place, not the numbers.
// A source that is left running keeps its own.
LIVE_TEST_WITH(PacketRing, NumbersItsBlocksAnewAfterVeryMany, {.leave_running = false}) {
  ASSERT_TRUE(has_own_network());
  constexpr std::uint16_t kType = 0x9a14;
  constexpr std::uint32_t kMany = (256U << 20) / kBlockSize + 7;
  const int fd = block_socket(kType, 20);
  BlockReader reader(fd, mapped(fd, kBlockSize * kBlockCount));
  Sender sender(kType);
  for (std::uint32_t i = 0; i < kMany; ++i) {
    sender.send(1, 5000);  // a block has no room for two of them
    if (i > 0) {
      ASSERT_EQ(reader.read(), numbers(i - 1, 1));
    }
  }
  ASSERT_EQ(reader.read(), numbers(kMany - 1, 1));
  sender.send(2);
  checkpoint_here();
  EXPECT_EQ(reader.read_packets(2), numbers(kMany, 2)) << "packets that waited, under their old number";
  reader.count_anew();
  for (std::uint32_t i = 0; i < 2 * kBlockCount; ++i) {
    sender.send(3);
    EXPECT_EQ(reader.read_packets(3), numbers(kMany + 2 + 3 * i, 3));
  }
  EXPECT_LE(reader.last_number(), 4 * kBlockCount);
}

// --- sending

// Receives what a ring sends.
class Receiver {
 public:
  explicit Receiver(std::uint16_t type) : fd_(bound_socket(SOCK_DGRAM, type, TPACKET_V1)) {}
  std::vector<std::uint32_t> receive(std::size_t count) {
    std::vector<std::uint32_t> out;
    while (out.size() < count) {
      pollfd ready{fd_, POLLIN, 0};
      if (::poll(&ready, 1, kPatience) != 1) {
        ADD_FAILURE() << "nothing was sent";
        return out;
      }
      std::uint32_t number = 0;
      sockaddr_ll from{};
      socklen_t size = sizeof from;
      EXPECT_EQ(::recvfrom(fd_, &number, sizeof number, 0, reinterpret_cast<sockaddr*>(&from), &size), 4);
      if (from.sll_pkttype != PACKET_OUTGOING) {
        out.push_back(number);
      }
    }
    return out;
  }

 private:
  int fd_;
};

template <class Head>
class Writer {
 public:
  // `before`: what precedes the number in each packet.
  Writer(int fd, char* ring, std::string before = {}) : fd_(fd), ring_(ring), before_(std::move(before)) {}
  // Puts numbers into the next frames, without telling the kernel.
  void put(std::uint32_t first, std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      char* const frame = ring_ + at_ * kFrameSize;
      ASSERT_EQ(status_of<Head>(frame), 0U) << "frame " << at_ << " is not the program's";
      const std::uint32_t number = first + i;
      char* const packet = frame + TPACKET_ALIGN(sizeof(Head));
      reinterpret_cast<Head*>(frame)->tp_len = static_cast<std::uint32_t>(before_.size() + sizeof number);
      std::memcpy(packet, before_.data(), before_.size());
      std::memcpy(packet + before_.size(), &number, sizeof number);
      status_of<Head>(frame) = TP_STATUS_SEND_REQUEST;
      at_ = (at_ + 1) % kFrameCount;
    }
  }
  void send() { ASSERT_GE(::send(fd_, nullptr, 0, 0), 0) << std::strerror(errno); }

 private:
  int fd_;
  char* ring_;
  std::string before_;
  std::size_t at_ = 0;
};

template <class Head>
void send(int version, std::uint16_t type) {
  Receiver receiver(type);
  const int fd = bound_socket(SOCK_DGRAM, type, version);
  if (version == TPACKET_V3) {
    const tpacket_req3 request{4096, kFrameCount * kFrameSize / 4096, kFrameSize, kFrameCount, 0, 0, 0};
    ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &request, sizeof request), 0);
  } else {
    make_ring(fd, PACKET_TX_RING);
  }
  Writer<Head> writer(fd, mapped(fd, kFrameCount * kFrameSize));
  for (const std::uint32_t first : {0U, 50U}) {
    writer.put(first, 50);
    writer.send();
    EXPECT_EQ(receiver.receive(50), numbers(first, 50));
  }
  writer.put(100, 5);
  checkpoint_here();
  writer.put(105, 20);
  writer.send();
  EXPECT_EQ(receiver.receive(25), numbers(100, 25)) << "those of before, and those behind them";
  writer.put(125, 60);
  writer.send();
  EXPECT_EQ(receiver.receive(60), numbers(125, 60));
}

LIVE_TEST(PacketRing, SendsOnFromTheSameFrame) {
  ASSERT_TRUE(has_own_network());
  send<tpacket2_hdr>(TPACKET_V2, kSent);
}

LIVE_TEST(PacketRing, SendsOnInTheFirstVersion) {
  ASSERT_TRUE(has_own_network());
  send<tpacket_hdr>(TPACKET_V1, kOldSent);
}

LIVE_TEST(PacketRing, SendsOnInTheThirdVersion) {
  ASSERT_TRUE(has_own_network());
  send<tpacket3_hdr>(TPACKET_V3, kBlocksSent);
}

LIVE_TEST(PacketRing, ReceivesAndSendsThroughOneMapping) {
  ASSERT_TRUE(has_own_network());
  const int fd = bound_socket(SOCK_DGRAM, kBoth, TPACKET_V2);
  make_ring(fd, PACKET_RX_RING);
  make_ring(fd, PACKET_TX_RING);
  char* const rings = mapped(fd, 2 * kFrameCount * kFrameSize);
  Reader<tpacket2_hdr> reader(fd, rings);
  Writer<tpacket2_hdr> writer(fd, rings + kFrameCount * kFrameSize);
  // A socket does not receive the outgoing copies of what it sends itself, but it does what the interface brings back.
  writer.put(0, 40);
  writer.send();
  EXPECT_EQ(reader.read(35), numbers(0, 35));
  writer.put(40, 3);
  checkpoint_here();
  writer.send();
  EXPECT_EQ(reader.read(8), numbers(35, 8));
  writer.put(43, 50);
  writer.send();
  EXPECT_EQ(reader.read(50), numbers(43, 50));
}

LIVE_TEST(PacketRing, IsMappedByTwoProcesses) {
  ASSERT_TRUE(has_own_network());
  const int fd = bound_socket(SOCK_DGRAM, kShared, TPACKET_V2);
  make_ring(fd, PACKET_RX_RING);
  char* const ring = mapped(fd, kFrameCount * kFrameSize);
  int begin[2], closed[2];
  ASSERT_EQ(::pipe(begin), 0);
  ASSERT_EQ(::pipe(closed), 0);
  char byte = 0;
  const pid_t child = ::fork();
  if (child == 0) {
    // It has the mapping and no descriptor of the socket.
    ::close(fd);
    if (::write(closed[1], "", 1) != 1 || ::read(begin[0], &byte, 1) != 1) {
      ::_exit(2);
    }
    status_of<tpacket2_hdr>(ring) = TP_STATUS_KERNEL;
    const char* const second = ring + kFrameSize;
    const auto* const head = reinterpret_cast<const tpacket2_hdr*>(second);
    std::uint32_t number = 0;
    std::memcpy(&number, second + head->tp_net, sizeof number);
    ::_exit((head->tp_status & TP_STATUS_USER) != 0 && number == 1 ? 0 : 1);
  }
  ASSERT_EQ(::read(closed[0], &byte, 1), 1);
  Sender sender(kShared);
  sender.send(2);
  checkpoint_here();
  EXPECT_NE(status_of<tpacket2_hdr>(ring) & TP_STATUS_USER, 0U);
  ASSERT_EQ(::write(begin[1], "", 1), 1);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "what the other process sees of the second frame";
  EXPECT_EQ(status_of<tpacket2_hdr>(ring), 0U) << "what the other process wrote";
}

// With headers for virtual devices, of the longer kind, before those of Ethernet.
LIVE_TEST(PacketRing, ReceivesAndSendsWithHeadersForVirtualDevices) {
  ASSERT_TRUE(has_own_network());
  constexpr std::uint16_t kType = 0x9a13;
  constexpr std::size_t kBefore = 12 + 14;
  const int fd = ::socket(AF_PACKET, SOCK_RAW, 0);
  const int version = TPACKET_V2, header = 12;
  ASSERT_EQ(::setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof version), 0);
  if (::setsockopt(fd, SOL_PACKET, 24 /* PACKET_VNET_HDR_SZ */, &header, sizeof header) != 0) {
    GTEST_SKIP() << "this kernel has no PACKET_VNET_HDR_SZ";
  }
  make_ring(fd, PACKET_RX_RING);
  make_ring(fd, PACKET_TX_RING);
  const sockaddr_ll own = over_loopback(kType);
  ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&own), sizeof own), 0);
  char* const rings = mapped(fd, 2 * kFrameCount * kFrameSize);
  Reader<tpacket2_hdr> reader(fd, rings);
  std::string before(kBefore, '\0');
  const std::uint16_t type = htons(kType);
  std::memcpy(before.data() + kBefore - sizeof type, &type, sizeof type);
  Writer<tpacket2_hdr> writer(fd, rings + kFrameCount * kFrameSize, before);
  writer.put(0, 40);
  writer.send();
  EXPECT_EQ(reader.read(35), numbers(0, 35));
  checkpoint_here();
  EXPECT_EQ(reader.read(5), numbers(35, 5));
  writer.put(40, 50);
  writer.send();
  EXPECT_EQ(reader.read(50), numbers(40, 50));
}

LIVE_TEST_WITH(PacketRing, IsRefusedInPart, {.refused = "a part of the rings of a packet socket"}) {
  ASSERT_TRUE(has_own_network());
  const int fd = bound_socket(SOCK_DGRAM, 0x9a12, TPACKET_V2);
  make_ring(fd, PACKET_RX_RING);
  char* const ring = mapped(fd, kFrameCount * kFrameSize);
  ASSERT_EQ(::munmap(ring, 4096), 0);
  checkpoint_here();
}

}  // namespace
}  // namespace ferry::live
