#include "state/packet_socket/packet_socket.h"

#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/packet_diag.h>
#include <linux/sock_diag.h>
#include <net/if.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "base/log.h"
#include "state/dump_host.h"
#include "state/memory/memory.h"
#include "state/nested/nested.h"
#include "state/packet_socket/mapped_rings.h"
#include "state/packet_socket/rings.h"
#include "state/socket/more_options.h"
#include "state/socket/options.h"
#include "sys/file.h"
#include "sys/net_namespace.h"
#include "sys/netlink.h"
#include "sys/packet_look.h"

namespace ferry::state {
namespace {

constexpr std::uint32_t kNoFanout = 0xffffffff;
constexpr std::uint32_t kFanoutByProgram = 6;  // PACKET_FANOUT_CBPF; one above it is PACKET_FANOUT_EBPF

struct Diag {
  packet_diag_info info{};
  std::vector<packet_diag_mclist> groups;
  std::optional<packet_diag_ring> rx, tx;
};

void describe(const packet_diag_ring& ring, pb::PacketRing& out) {
  out.set_block_size(ring.pdr_block_size);
  out.set_block_nr(ring.pdr_block_nr);
  out.set_frame_size(ring.pdr_frame_size);
  out.set_frame_nr(ring.pdr_frame_nr);
  out.set_retire_tmo(ring.pdr_retire_tmo);
  out.set_sizeof_priv(ring.pdr_sizeof_priv);
  out.set_features(ring.pdr_features);
}

class PacketSocketKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "packet socket"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_PACKETSK; }

  // To make the program that looks at rings takes some milliseconds.
  void prepare(int proc, int /*fd*/, const std::string& link) override {
    struct stat network {};
    if (look_ || !link.starts_with("socket:[") || ::fstatat(proc, "ns/net", &network, 0) != 0 ||
        !prepared_.insert(network.st_ino).second) {
      return;
    }
    // A head, then a line for each packet socket of the network (proc(5)).
    const auto sockets = sys::read_file_at(proc, "net/packet");
    if (sockets.has_value() && std::count(sockets->begin(), sockets->end(), '\n') > 1) {
      if (auto look = sys::PacketLook::open(); look.has_value()) {
        look_ = std::move(*look);
      } else {
        log::debug("rings of packet sockets cannot be looked at: {}", look.error().message());
      }
    }
  }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    if (!S_ISSOCK(probe.stat.st_mode) || !probe.link.starts_with("socket:[")) {
      return false;
    }
    const auto domain = socket::get_int(probe.ours, SOL_SOCKET, SO_DOMAIN, "SO_DOMAIN");
    return domain.has_value() && *domain == AF_PACKET;
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const std::string subject = probe.subject();
    FERRY_TRY(const Networks::Place* const network, context.host.networks().of_socket(subject, probe.ours, context));
    pb::PacketSockEntry& entry = *out.mutable_psk();
    FERRY_TRY(const int type, socket::get_int(probe.ours, SOL_SOCKET, SO_TYPE, "SO_TYPE"));
    if (type != SOCK_RAW && type != SOCK_DGRAM) {
      return fail(Kind::unsupported, "{}: a packet socket of type {} cannot be carried over", subject, type);
    }
    entry.set_id(out.id());
    entry.set_type(static_cast<std::uint32_t>(type));
    entry.set_flags(probe.status_flags());
    entry.set_ns_id(network->id);
    sockaddr_ll own{};
    socklen_t size = sizeof own;
    if (::getsockname(probe.ours, reinterpret_cast<sockaddr*>(&own), &size) != 0) {
      return sys_fail(fmt::format("getsockname({})", subject));
    }
    entry.set_protocol(own.sll_protocol);
    entry.set_ifindex(static_cast<std::uint32_t>(own.sll_ifindex));
    FERRY_TRY(const Diag diag, look_at(network->ns.get(), static_cast<std::uint32_t>(probe.stat.st_ino), subject));
    entry.set_version(diag.info.pdi_version);
    entry.set_reserve(diag.info.pdi_reserve);
    entry.set_copy_thresh(diag.info.pdi_copy_thresh);
    entry.set_timestamp(diag.info.pdi_tstamp);
    entry.set_aux_data((diag.info.pdi_flags & PDI_AUXDATA) != 0);
    entry.set_orig_dev((diag.info.pdi_flags & PDI_ORIGDEV) != 0);
    entry.set_vnet_hdr((diag.info.pdi_flags & PDI_VNETHDR) != 0);
    entry.set_loss((diag.info.pdi_flags & PDI_LOSS) != 0);
    for (const packet_diag_mclist& group : diag.groups) {
      pb::PacketMclist& kept = *entry.add_mclist();
      kept.set_index(group.pdmc_index);
      kept.set_type(group.pdmc_type);
      kept.set_addr(group.pdmc_addr, group.pdmc_alen);
    }
    FERRY_CHECK(collect_fanout(probe, entry));
    FERRY_CHECK(collect_rings(probe, diag, entry));
    warn_of_queue(probe);
    FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
    FERRY_CHECK(more_.prepare(probe.ours, *network, subject));
    FERRY_CHECK(more_.collect(probe.ours, *network, false, *entry.mutable_ferry_options()));
    return socket::collect_options(probe.ours, subject, *entry.mutable_opts());
  }

  // Mappings were collected before the sockets, under the inode of theirs.
  Result<void> finish(DumpContext& context) override {
    for (const auto& task : context.tasks) {
      if (task->mm == nullptr) {
        continue;
      }
      for (pb::VmaEntry& vma : *task->mm->mutable_vmas()) {
        if ((vma.status() & memory::kSocket) != 0) {
          FERRY_CHECK(name_socket(vma).during("pid {} mapping {:x}-{:x}", task->pid, vma.start(), vma.end()));
        }
      }
    }
    return {};
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::PacketSockEntry& entry = file.psk();
    const std::string subject = fmt::format("packet socket {}", entry.id());
    // Without a protocol it receives nothing until it is bound.
    FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
    FERRY_TRY(UniqueFd fd, inside->get<UniqueFd>([&]() -> Result<UniqueFd> {
      UniqueFd made(::socket(AF_PACKET, static_cast<int>(entry.type()) | SOCK_CLOEXEC, 0));
      if (!made) {
        return sys_fail(fmt::format("socket(AF_PACKET, type {})", entry.type()));
      }
      return made;
    }));
    const struct {
      int name;
      const char* text;
      std::uint32_t value;
    } options[] = {{PACKET_VERSION, "PACKET_VERSION", entry.version()},
                   {PACKET_RESERVE, "PACKET_RESERVE", entry.reserve()},
                   {PACKET_AUXDATA, "PACKET_AUXDATA", entry.aux_data() ? 1U : 0U},
                   {PACKET_ORIGDEV, "PACKET_ORIGDEV", entry.orig_dev() ? 1U : 0U},
                   {PACKET_VNET_HDR, "PACKET_VNET_HDR", entry.vnet_hdr() ? 1U : 0U},
                   {PACKET_LOSS, "PACKET_LOSS", entry.loss() ? 1U : 0U},
                   {PACKET_TIMESTAMP, "PACKET_TIMESTAMP", entry.timestamp()}};
    for (const auto& o : options) {
      if (o.value != 0) {
        FERRY_CHECK(
            socket::set_int(fd.get(), SOL_PACKET, o.name, static_cast<int>(o.value), o.text).during("{}", subject));
      }
    }
    FERRY_CHECK(socket::restore_plain_options(fd.get(), entry.opts(), subject));
    FERRY_CHECK(socket::restore_more(fd.get(), entry.ferry_options(), false, subject));
    if (entry.has_rx_ring() || entry.has_tx_ring()) {
      FERRY_CHECK(packet_socket::restore_rings(fd.get(), subject, *inside, entry));
    }
    FERRY_CHECK(socket::restore_filter(fd.get(), entry.opts(), subject));
    if (entry.copy_thresh() != 0) {
      FERRY_CHECK(socket::set_int(fd.get(), SOL_PACKET, PACKET_COPY_THRESH, static_cast<int>(entry.copy_thresh()),
                                  "PACKET_COPY_THRESH")
                      .during("{}", subject));
    }
    for (const pb::PacketMclist& group : entry.mclist()) {
      FERRY_CHECK(join(fd.get(), group, subject));
    }
    sockaddr_ll own{};
    own.sll_family = AF_PACKET;
    own.sll_protocol = static_cast<std::uint16_t>(entry.protocol());
    own.sll_ifindex = static_cast<int>(entry.ifindex());
    if ((own.sll_protocol != 0 || own.sll_ifindex != 0) &&
        ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0) {
      return sys_fail(fmt::format("bind({}, interface {})", subject, own.sll_ifindex));
    }
    if (entry.fanout() != kNoFanout) {
      FERRY_CHECK(
          socket::set_int(fd.get(), SOL_PACKET, PACKET_FANOUT, static_cast<int>(entry.fanout()), "PACKET_FANOUT")
              .during("{}", subject));
    }
    FERRY_CHECK(restore_status_flags(fd.get(), entry.flags()));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restore_fown(fd, file.psk().fown(), context);
  }

 private:
  // sock_diag(7) answers for all packet sockets of the namespace.
  static Result<Diag> look_at(int ns, std::uint32_t inode, const std::string& subject) {
    FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(ns));
    FERRY_TRY(auto netlink, sys::Netlink::open(NETLINK_SOCK_DIAG));
    packet_diag_req request{};
    request.sdiag_family = AF_PACKET;
    request.pdiag_show = PACKET_SHOW_INFO | PACKET_SHOW_MCLIST | PACKET_SHOW_RING_CFG;
    std::optional<Diag> out;
    FERRY_CHECK(netlink.request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, std::as_bytes(std::span(&request, 1)), subject,
                                [&](std::span<const std::byte> payload) -> Result<void> {
                                  packet_diag_msg head{};
                                  if (payload.size() < sizeof head) {
                                    return fail(Kind::corrupt, "an answer of sock_diag has {} bytes", payload.size());
                                  }
                                  std::memcpy(&head, payload.data(), sizeof head);
                                  if (head.pdiag_ino == inode) {
                                    out = parse(payload.subspan(sizeof head));
                                  }
                                  return {};
                                }));
    if (!out) {
      return fail(Kind::unsupported, "{}: this kernel does not tell what packet sockets are (CONFIG_PACKET_DIAG)",
                  subject);
    }
    return *out;
  }

  static Diag parse(std::span<const std::byte> attributes) {
    Diag out;
    for (const auto& [type, bytes] : sys::parse_attributes(attributes)) {
      if (type == PACKET_DIAG_INFO) {
        std::memcpy(&out.info, bytes.data(), std::min(bytes.size(), sizeof out.info));
      } else if (type == PACKET_DIAG_MCLIST) {
        for (std::size_t at = 0; at + sizeof(packet_diag_mclist) <= bytes.size(); at += sizeof(packet_diag_mclist)) {
          packet_diag_mclist group{};
          std::memcpy(&group, bytes.data() + at, sizeof group);
          group.pdmc_alen = std::min<std::uint16_t>(group.pdmc_alen, sizeof group.pdmc_addr);
          out.groups.push_back(group);
        }
      } else if (type == PACKET_DIAG_RX_RING || type == PACKET_DIAG_TX_RING) {
        packet_diag_ring& ring = (type == PACKET_DIAG_RX_RING ? out.rx : out.tx).emplace();
        std::memcpy(&ring, bytes.data(), std::min(bytes.size(), sizeof ring));
      }
    }
    return out;
  }

  static Result<void> collect_fanout(const FdProbe& probe, pb::PacketSockEntry& entry) {
    FERRY_TRY(const int value, socket::get_int(probe.ours, SOL_PACKET, PACKET_FANOUT, "PACKET_FANOUT"));
    const auto fanout = static_cast<std::uint32_t>(value);
    entry.set_fanout(fanout == 0 ? kNoFanout : fanout);
    if (fanout != 0 && (fanout >> 16 & 0xff) >= kFanoutByProgram) {
      return fail(Kind::unsupported,
                  "{}: a group of packet sockets that a BPF program spreads packets over cannot be carried over",
                  probe.subject());
    }
    return {};
  }

  Result<void> collect_rings(const FdProbe& probe, const Diag& diag, pb::PacketSockEntry& entry) {
    if (!diag.rx && !diag.tx) {
      return {};
    }
    if (diag.rx) {
      describe(*diag.rx, *entry.mutable_rx_ring());
    }
    if (diag.tx) {
      describe(*diag.tx, *entry.mutable_tx_ring());
    }
    if (!look_) {
      FERRY_TRY(look_, sys::PacketLook::open().during("{}: its rings can be carried over only where they can be "
                                                      "looked at by BPF (BTF, CAP_BPF and CAP_PERFMON)",
                                                      probe.subject()));
    }
    FERRY_CHECK(packet_socket::collect_rings(probe.ours, probe.subject(), *look_, entry));
    with_rings_.emplace(probe.stat.st_ino, &entry);
    return {};
  }

  Result<void> name_socket(pb::VmaEntry& vma) const {
    const auto found = with_rings_.find(vma.shmid());
    if (found == with_rings_.end()) {
      return fail(Kind::unsupported,
                  "memory of socket {} cannot be carried over: no packet socket that is open in the tree", vma.shmid());
    }
    const pb::PacketSockEntry& socket = *found->second;
    if (vma.pgoff() != 0 || vma.end() - vma.start() != packet_socket::size_of_rings(socket)) {
      return fail(Kind::unsupported, "a part of the rings of a packet socket cannot be carried over without the rest");
    }
    vma.set_shmid(socket.id());
    return {};
  }

  static void warn_of_queue(const FdProbe& probe) {
    char byte = 0;
    if (::recv(probe.ours, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0) {
      log::warning("{}: packets that were received and not read yet are left out", probe.subject());
    }
  }

  static Result<void> join(int fd, const pb::PacketMclist& group, const std::string& subject) {
    struct {
      packet_mreq head;
      char more[24];  // struct packet_mreq_max of the kernel: up to MAX_ADDR_LEN bytes
    } request{};
    if (group.addr().size() > sizeof request.head.mr_address + sizeof request.more) {
      return fail(Kind::corrupt, "{}: a link-layer address of {} bytes", subject, group.addr().size());
    }
    request.head.mr_ifindex = static_cast<int>(group.index());
    request.head.mr_type = static_cast<std::uint16_t>(group.type());
    request.head.mr_alen = static_cast<std::uint16_t>(group.addr().size());
    std::memcpy(reinterpret_cast<char*>(&request) + offsetof(packet_mreq, mr_address), group.addr().data(),
                group.addr().size());
    if (::setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request, sizeof request) != 0) {
      return sys_fail(fmt::format("setsockopt({}, PACKET_ADD_MEMBERSHIP)", subject));
    }
    return {};
  }

  socket::MoreOptionsReader more_;
  std::optional<sys::PacketLook> look_;                             // opened when it is needed
  std::set<ino_t> prepared_;                                        // networks that were looked at for packet sockets
  std::map<std::uint64_t, const pb::PacketSockEntry*> with_rings_;  // by inode
};

}  // namespace

std::unique_ptr<FileKind> make_packet_socket_kind() { return std::make_unique<PacketSocketKind>(); }

}  // namespace ferry::state
