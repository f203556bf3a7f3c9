#include "sys/packet_queue.h"

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <map>

#include "sys/netlink.h"
#include "sys/nfnetlink.h"

namespace ferry::sys {
namespace {

constexpr std::uint16_t kNumber = 0;
constexpr std::uint32_t kWholePacket = 0xffff;
constexpr int kRoom = 16 << 20;  // of our socket; what does not fit is dropped
constexpr std::size_t kMessageRoom = 128 * 1024;

std::span<const std::byte> bytes_of(const auto& value) { return std::as_bytes(std::span(&value, 1)); }

}  // namespace

Result<PacketQueue> PacketQueue::open(std::uint32_t most) {
  PacketQueue out;
  FERRY_TRY(out.fd_, open_nfnetlink());
  (void)::setsockopt(out.fd_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kRoom, sizeof kRoom);
  // A message that does not fit is an error of recv(2) otherwise (netlink(7), NETLINK_NO_ENOBUFS).
  const int on = 1;
  (void)::setsockopt(out.fd_.get(), SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof on);
  const nfqnl_msg_config_cmd command{NFQNL_CFG_CMD_BIND, 0, htons(AF_UNSPEC)};
  Attributes bind;
  bind.bytes(NFQA_CFG_CMD, bytes_of(command));
  FERRY_CHECK(out.configure(bind, "binding packet queue 0"));
  const nfqnl_msg_config_params parameters{htonl(kWholePacket), NFQNL_COPY_PACKET};
  Attributes mode;
  mode.bytes(NFQA_CFG_PARAMS, bytes_of(parameters));
  mode.be32(NFQA_CFG_QUEUE_MAXLEN, most);
  FERRY_CHECK(out.configure(mode, "setting packet queue 0 up"));
  return out;
}

Result<void> PacketQueue::configure(const Attributes& what, const char* name) {
  const auto message = encode({.subsystem = NFNL_SUBSYS_QUEUE,
                               .type = NFQNL_MSG_CONFIG,
                               .flags = NLM_F_ACK,
                               .family = AF_UNSPEC,
                               .resource = kNumber,
                               .sequence = ++sequence_},
                              what.data());
  if (::send(fd_.get(), message.data(), message.size(), 0) < 0) {
    return sys_fail(fmt::format("send({})", name));
  }
  // Nothing is queued before the queue is set up, so the answer is the next message.
  char answer[4096];
  const ssize_t got = ::recv(fd_.get(), answer, sizeof answer, 0);
  nlmsghdr head{};
  int error = 0;
  if (got < static_cast<ssize_t>(NLMSG_HDRLEN + sizeof error)) {
    return sys_fail(fmt::format("recv({})", name));
  }
  std::memcpy(&head, answer, sizeof head);
  std::memcpy(&error, answer + NLMSG_HDRLEN, sizeof error);
  if (head.nlmsg_type == NLMSG_ERROR && error != 0) {
    return sys_fail(-error, name);
  }
  return {};
}

Result<std::vector<std::string>> PacketQueue::take() {
  std::vector<std::string> out;
  std::vector<std::byte> room(kMessageRoom);
  for (;;) {
    const ssize_t got = ::recv(fd_.get(), room.data(), room.size(), MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < 0 && errno == EAGAIN) {
      return out;
    }
    if (got < 0) {
      return sys_fail("recv(packet queue)");
    }
    std::span<const std::byte> rest(room.data(), static_cast<std::size_t>(got));
    while (rest.size() >= NLMSG_HDRLEN + sizeof(nfgenmsg)) {
      nlmsghdr head{};
      std::memcpy(&head, rest.data(), sizeof head);
      if (head.nlmsg_len < NLMSG_HDRLEN + sizeof(nfgenmsg) || head.nlmsg_len > rest.size()) {
        return fail(Kind::corrupt, "the packet queue sent a message of a bad length");
      }
      const auto attributes = parse_attributes(
          rest.subspan(NLMSG_HDRLEN + sizeof(nfgenmsg), head.nlmsg_len - NLMSG_HDRLEN - sizeof(nfgenmsg)));
      const auto about = attributes.find(NFQA_PACKET_HDR), payload = attributes.find(NFQA_PAYLOAD);
      if (head.nlmsg_type == (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET) && about != attributes.end() &&
          about->second.size() >= sizeof(nfqnl_msg_packet_hdr) && payload != attributes.end()) {
        nfqnl_msg_packet_hdr packet{};
        std::memcpy(&packet, about->second.data(), sizeof packet);
        last_id_ = ntohl(packet.packet_id);
        out.emplace_back(reinterpret_cast<const char*>(payload->second.data()), payload->second.size());
      }
      rest = rest.subspan(std::min<std::size_t>(rest.size(), NLMSG_ALIGN(head.nlmsg_len)));
    }
  }
}

Result<void> PacketQueue::accept_all() { return decide(NF_ACCEPT); }
Result<void> PacketQueue::drop_all() { return decide(NF_DROP); }

Result<void> PacketQueue::decide(std::uint32_t verdict) {
  if (last_id_ == 0) {
    return {};
  }
  const nfqnl_msg_verdict_hdr all{htonl(verdict), htonl(last_id_)};
  Attributes what;
  what.bytes(NFQA_VERDICT_HDR, bytes_of(all));
  // Of all packets up to this one.
  const auto message = encode({.subsystem = NFNL_SUBSYS_QUEUE,
                               .type = NFQNL_MSG_VERDICT_BATCH,
                               .family = AF_UNSPEC,
                               .resource = kNumber,
                               .sequence = ++sequence_},
                              what.data());
  if (::send(fd_.get(), message.data(), message.size(), 0) < 0) {
    return sys_fail("send(verdict on queued packets)");
  }
  last_id_ = 0;
  return {};
}

}  // namespace ferry::sys
