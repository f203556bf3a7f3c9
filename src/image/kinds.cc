#include "image/kinds.h"

#include <array>

#include "image/proto/cgroup.pb.h"
#include "image/proto/core.pb.h"
#include "image/proto/cpuinfo.pb.h"
#include "image/proto/files.pb.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/ipc.pb.h"
#include "image/proto/mm.pb.h"
#include "image/proto/mount.pb.h"
#include "image/proto/net.pb.h"
#include "image/proto/ns.pb.h"
#include "image/proto/pstree.pb.h"
#include "image/proto/remap.pb.h"
#include "image/proto/security.pb.h"
#include "image/proto/sockets.pb.h"
#include "image/proto/tty.pb.h"

namespace ferry::image {
namespace {

using google::protobuf::Message;

template <class M>
MessagePtr make() {
  return std::make_shared<M>();
}

template <class M>
constexpr KindInfo one(Type type, std::string_view prefix, Numbering n, std::uint32_t magic, std::string_view name) {
  return {type, prefix, n, magic, name, Layout::one, make<M>, nullptr, &typeid(M), nullptr};
}
template <class M>
constexpr KindInfo many(Type type, std::string_view prefix, Numbering n, std::uint32_t magic, std::string_view name) {
  return {type, prefix, n, magic, name, Layout::many, make<M>, make<M>, &typeid(M), &typeid(M)};
}
constexpr KindInfo raw(Type type, std::string_view prefix) {
  return {type, prefix, Numbering::decimal, 0, "", Layout::raw, nullptr, nullptr, nullptr, nullptr};
}
template <class Head, class M>
constexpr KindInfo headed(Type type, std::string_view prefix, std::uint32_t magic, std::string_view name) {
  return {type,       prefix,  Numbering::decimal, magic,     name, Layout::headed,
          make<Head>, make<M>, &typeid(Head),      &typeid(M)};
}

constexpr auto kNone = Numbering::none;
constexpr auto kDecimal = Numbering::decimal;
constexpr auto kHex = Numbering::hexadecimal;

constexpr std::array kKinds = {
    one<pb::InventoryEntry>(Type::inventory, "inventory", kNone, 0x58313116, "INVENTORY"),
    many<pb::PstreeEntry>(Type::pstree, "pstree", kNone, 0x50273030, "PSTREE"),
    one<pb::CoreEntry>(Type::core, "core-", kDecimal, 0x55053847, "CORE"),
    one<pb::TaskKobjIdsEntry>(Type::ids, "ids-", kDecimal, 0x54432030, "IDS"),
    one<pb::MmEntry>(Type::mm, "mm-", kDecimal, 0x57492820, "MM"),
    one<pb::FsEntry>(Type::fs, "fs-", kDecimal, 0x51403912, "FS"),
    many<pb::FdinfoEntry>(Type::fdinfo, "fdinfo-", kDecimal, 0x56213732, "FDINFO"),
    many<pb::FileEntry>(Type::files, "files", kNone, 0x56303138, "FILES"),
    headed<pb::PagemapHead, pb::PagemapEntry>(Type::pagemap, "pagemap-", 0x56084025, "PAGEMAP"),
    headed<pb::PagemapHead, pb::PagemapEntry>(Type::pagemap_shmem, "pagemap-shmem-", 0x56084025, "PAGEMAP"),
    many<pb::PipeDataEntry>(Type::pipes_data, "pipes-data", kNone, 0x56453709, "PIPES_DATA"),
    many<pb::PipeDataEntry>(Type::fifo_data, "fifo-data", kNone, 0x59333054, "FIFO_DATA"),
    many<pb::SkPacketEntry>(Type::sk_queues, "sk-queues", kNone, 0x56264026, "SK_QUEUES"),
    many<pb::TtyInfoEntry>(Type::tty_info, "tty-info", kNone, 0x59453036, "TTY_INFO"),
    many<pb::TtyDataEntry>(Type::tty_data, "tty-data", kNone, 0x59413026, "TTY_DATA"),
    many<pb::RemapFilePathEntry>(Type::remap_fpath, "remap-fpath", kNone, 0x59133954, "REMAP_FPATH"),
    KindInfo{Type::ghost_file, "ghost-file-", kHex, 0x52583605, "GHOST_FILE", Layout::ghost, make<pb::GhostFileEntry>,
             make<pb::GhostChunkEntry>, &typeid(pb::GhostFileEntry), &typeid(pb::GhostChunkEntry)},
    many<pb::MemfdInodeEntry>(Type::memfd, "memfd", kNone, 0x48453499, "MEMFD_INODE"),
    one<pb::TcpStreamEntry>(Type::tcp_stream, "tcp-stream-", kHex, 0x51465506, "TCP_STREAM"),
    many<pb::FileLockEntry>(Type::filelocks, "filelocks", kNone, 0x54323616, "FILE_LOCKS"),
    one<pb::SeccompEntry>(Type::seccomp, "seccomp", kNone, 0x64413049, "SECCOMP"),
    one<pb::ApparmorEntry>(Type::apparmor, "apparmor", kNone, 0x59423047, "APPARMOR"),
    one<pb::CgroupEntry>(Type::cgroup, "cgroup", kNone, 0x59383330, "CGROUP"),
    many<pb::BpfmapDataEntry>(Type::bpfmap_data, "bpfmap-data", kNone, 0x64324033, "BPFMAP_DATA"),
    many<pb::MntEntry>(Type::mountpoints, "mountpoints-", kDecimal, 0x55563928, "MNTS"),
    raw(Type::tmpfs_dev, "tmpfs-dev-"),
    one<pb::AutofsEntry>(Type::autofs, "autofs-", kDecimal, 0x49353943, "AUTOFS"),
    many<pb::BinfmtMiscEntry>(Type::binfmt_misc, "binfmt-misc", kNone, 0x67343323, "BINFMT_MISC"),
    one<pb::UtsnsEntry>(Type::utsns, "utsns-", kDecimal, 0x54473203, "UTSNS"),
    one<pb::UsernsEntry>(Type::userns, "userns-", kDecimal, 0x55474906, "USERNS"),
    one<pb::TimensEntry>(Type::timens, "timens-", kDecimal, 0x43114433, "TIMENS"),
    one<pb::PidnsEntry>(Type::pidns, "pidns-", kDecimal, 0x61157326, "PIDNS"),
    one<pb::IpcVarEntry>(Type::ipcns_var, "ipcns-var-", kDecimal, 0x53115007, "IPC_VAR"),
    many<pb::IpcShmEntry>(Type::ipcns_shm, "ipcns-shm-", kDecimal, 0x46283044, "IPCNS_SHM"),
    KindInfo{Type::ipcns_msg, "ipcns-msg-", kDecimal, 0x55453737, "IPCNS_MSG", Layout::messages, make<pb::IpcMsgEntry>,
             make<pb::IpcMsg>, &typeid(pb::IpcMsgEntry), &typeid(pb::IpcMsg)},
    many<pb::IpcSemEntry>(Type::ipcns_sem, "ipcns-sem-", kDecimal, 0x59573019, "IPCNS_SEM"),
    many<pb::NetDeviceEntry>(Type::netdev, "netdev-", kDecimal, 0x57373951, "NETDEV"),
    one<pb::NetnsEntry>(Type::netns, "netns-", kDecimal, 0x55933752, "NETNS"),
    raw(Type::ifaddr, "ifaddr-"),
    raw(Type::route, "route-"),
    raw(Type::route6, "route6-"),
    raw(Type::rule, "rule-"),
    raw(Type::iptables, "iptables-"),
    raw(Type::ip6tables, "ip6tables-"),
    raw(Type::nftables, "nftables-"),
    raw(Type::netns_ct, "netns-ct-"),
    raw(Type::netns_exp, "netns-exp-"),
    one<pb::CpuinfoEntry>(Type::cpuinfo, "cpuinfo", kNone, 0x61404013, "CPUINFO"),
};

constexpr bool in_order() {
  for (std::size_t i = 0; i < kKinds.size(); ++i) {
    if (static_cast<std::size_t>(kKinds[i].type) != i) {
      return false;
    }
  }
  return kKinds.size() == static_cast<std::size_t>(Type::cpuinfo) + 1;
}
static_assert(in_order(), "kind_info() indexes the table by Type");

constexpr std::uint64_t up_to(std::uint64_t size, std::uint64_t unit) { return (unit - size % unit) % unit; }

}  // namespace

const KindInfo& kind_info(Type type) { return kKinds[static_cast<std::size_t>(type)]; }

std::span<const KindInfo> all_kinds() { return kKinds; }

ExtraSize extra_size(Type type, const Message& message) {
  const auto padded = [](std::uint64_t bytes, std::uint64_t unit) { return ExtraSize{bytes, up_to(bytes, unit)}; };
  switch (type) {
    case Type::pipes_data:
    case Type::fifo_data:
      return {static_cast<const pb::PipeDataEntry&>(message).bytes(), 0};
    case Type::sk_queues:
      return {static_cast<const pb::SkPacketEntry&>(message).length(), 0};
    case Type::tcp_stream: {
      const auto& tcp = static_cast<const pb::TcpStreamEntry&>(message);
      return {std::uint64_t{tcp.inq_len()} + tcp.outq_len(), 0};
    }
    case Type::bpfmap_data: {
      const auto& map = static_cast<const pb::BpfmapDataEntry&>(message);
      return {std::uint64_t{map.keys_bytes()} + map.values_bytes(), 0};
    }
    case Type::ghost_file: {
      const auto* chunk = dynamic_cast<const pb::GhostChunkEntry*>(&message);
      return {chunk == nullptr ? 0 : chunk->len(), 0};
    }
    case Type::ipcns_msg: {
      const auto* msg = dynamic_cast<const pb::IpcMsg*>(&message);
      return msg == nullptr ? ExtraSize{} : padded(msg->msize(), 8);
    }
    case Type::ipcns_sem:
      return padded(std::uint64_t{static_cast<const pb::IpcSemEntry&>(message).nsems()} * sizeof(std::uint16_t), 8);
    case Type::ipcns_shm: {
      const auto& shm = static_cast<const pb::IpcShmEntry&>(message);
      return shm.in_pagemaps() ? ExtraSize{} : padded(shm.size(), 4);
    }
    default:
      return {};
  }
}

std::uint32_t message_count(const Message& queue) { return static_cast<const pb::IpcMsgEntry&>(queue).qnum(); }

bool has_chunks(const Message& ghost) { return static_cast<const pb::GhostFileEntry&>(ghost).chunks(); }

}  // namespace ferry::image
