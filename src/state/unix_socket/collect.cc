#include "state/unix_socket/collect.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

#include "state/dump_host.h"
#include "state/socket/options.h"
#include "state/unix_socket/queue.h"
#include "state/unix_socket/unix_socket.h"
#include "state/userns/userns.h"
#include "sys/file.h"
#include "sys/net_namespace.h"

namespace ferry::state::unix_socket {
namespace {

constexpr unsigned long kFileOfSocket = 0x89E0;  // SIOCUNIXFILE, <linux/un.h>, Linux 4.13
constexpr std::size_t kAskForAll = 32;           // from so many sockets on, one question about all is cheaper
constexpr std::string_view kDeleted = " (deleted)";

Result<std::string> name_of(int fd, bool peer, const std::string& subject) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if ((peer ? ::getpeername(fd, generic, &size) : ::getsockname(fd, generic, &size)) != 0) {
    return sys_fail(fmt::format("{}({})", peer ? "getpeername" : "getsockname", subject));
  }
  constexpr std::size_t head = offsetof(sockaddr_un, sun_path);
  if (size <= head) {
    return std::string();
  }
  return std::string(address.sun_path, std::min<std::size_t>(size - head, sizeof address.sun_path));
}

// The pid that the tree's innermost namespace has for a process; 0 if it is none of the tree.
std::int32_t inner_pid(const DumpContext& context, pid_t pid) {
  const DumpTask* task = pid <= 0 ? nullptr : context.find(HostPid(pid));
  return task == nullptr ? 0 : task->ns_pid.value;
}

// SO_PEERCRED, unix(7); SO_PEEK_OFF, socket(7).
Result<void> collect_memories(int fd, std::uint32_t state, const DumpContext& context, const std::string& subject,
                              pb::UnixSkEntry& entry) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return sys_fail(fmt::format("getsockopt({}, SO_PEERCRED)", subject));
  }
  const bool known = peer.pid != 0 || peer.uid != ~0U;
  if (known && (state == kEstablished || state == kListen)) {
    entry.set_ferry_peer_pid(inner_pid(context, peer.pid));
    const userns::Owner owner = userns::inside(context, {peer.uid, peer.gid});
    entry.set_ferry_peer_uid(owner.uid);
    entry.set_ferry_peer_gid(owner.gid);
  }
  FERRY_TRY(const int offset, socket::get_int(fd, SOL_SOCKET, SO_PEEK_OFF, "SO_PEEK_OFF"));
  if (offset >= 0) {
    entry.set_ferry_peek_offset(offset);
  }
  // The error itself could only be taken away from the program (SO_ERROR); of a Unix socket it is always that
  // the other end was closed with unread data.
  pollfd p{fd, 0, 0};
  if (state == kEstablished && ::poll(&p, 1, 0) == 1 && (p.revents & POLLERR) != 0) {
    entry.set_ferry_reset(true);
  }
  return {};
}

bool is_external(const DumpOptions& options, std::uint32_t inode) {
  return std::find(options.external.begin(), options.external.end(), fmt::format("unix[{}]", inode)) !=
         options.external.end();
}

}  // namespace

// sock_diag(7) answers for the network namespace that its own socket was made in.
Result<Collector::Asked*> Collector::asked_in(const Networks::Place& network, DumpContext& context) {
  if (const auto found = asked_.find(network.id); found != asked_.end()) {
    return &found->second;
  }
  const auto open = [&]() -> Result<sys::Netlink> {
    if (network.of_root) {
      return context.host.inside().get<sys::Netlink>([] { return sys::Netlink::open(NETLINK_SOCK_DIAG); });
    }
    FERRY_TRY(const auto visit, sys::NetNamespaceVisit::enter(network.ns.get()));
    return sys::Netlink::open(NETLINK_SOCK_DIAG);
  };
  FERRY_TRY(sys::Netlink netlink, open());
  return &asked_.emplace(network.id, Asked{std::move(netlink), 0, {}}).first->second;
}

Result<sys::UnixDiag> Collector::diag_of(std::uint32_t inode, const Networks::Place& network, DumpContext& context) {
  FERRY_TRY(Asked* const asked, asked_in(network, context));
  if (asked->times++ == kAskForAll) {
    FERRY_TRY(asked->all, sys::all_unix_diags(asked->netlink));
  }
  if (const auto found = asked->all.find(inode); found != asked->all.end()) {
    return std::move(found->second);
  }
  return sys::unix_diag(asked->netlink, inode);
}

Result<void> Collector::collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) {
  const std::string subject = probe.subject();
  FERRY_TRY(const Networks::Place* const network, context.host.networks().of_socket(subject, probe.ours, context));
  const auto inode = static_cast<std::uint32_t>(probe.stat.st_ino);
  FERRY_TRY(sys::UnixDiag diag, diag_of(inode, *network, context).during("{}", subject));
  pb::UnixSkEntry& entry = *out.mutable_usk();
  entry.set_id(out.id());
  entry.set_ino(inode);
  entry.set_type(diag.type);
  entry.set_state(diag.state);
  entry.set_flags(probe.status_flags());
  entry.set_uflags(0);
  entry.set_backlog(diag.state == kListen ? diag.write_queue : 0);
  entry.set_peer(diag.peer.value_or(0));
  if (diag.shutdown > 3) {
    return fail(Kind::corrupt, "{}: sock_diag says shutdown {}", subject, diag.shutdown);
  }
  if (diag.shutdown != 0) {
    entry.set_shutdown(static_cast<pb::SkShutdown>(diag.shutdown));
  }
  entry.set_ns_id(network->id);
  FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
  FERRY_CHECK(socket::collect_options(probe.ours, subject, *entry.mutable_opts()));
  FERRY_CHECK(collect_memories(probe.ours, diag.state, context, subject, entry));
  FERRY_CHECK(collect_name(probe, entry));
  for (const std::uint32_t client : diag.pending) {
    if (client == 0) {
      return fail(Kind::unsupported, "{}: a connection that waits for accept(2) was closed by its client; try again",
                  subject);
    }
    waiting_for_[client] = inode;
  }
  by_inode_[inode] = known_.size();
  known_.push_back({out.id(), subject, &probe.task, probe.ours, std::move(diag)});
  return {};
}

Result<void> Collector::collect_name(const FdProbe& probe, pb::UnixSkEntry& entry) const {
  FERRY_TRY(const std::string name, name_of(probe.ours, false, probe.subject()));
  entry.set_name(name);
  if (name.empty() || name.front() == '\0') {
    return {};
  }
  return collect_path(probe, name.c_str(), entry);
}

// The name may be relative to what was the current directory then, and the file may be gone; the kernel
// gives the file itself.
Result<void> Collector::collect_path(const FdProbe& probe, const std::string& path, pb::UnixSkEntry& entry) const {
  const UniqueFd file(::ioctl(probe.ours, kFileOfSocket));
  if (!file) {
    if (errno == ENOENT) {  // an accepted socket has its listener's name without the file
      return {};
    }
    return sys_fail(fmt::format("ioctl({}, SIOCUNIXFILE)", probe.subject()));
  }
  FERRY_TRY(const struct stat st, sys::stat_fd(file.get(), path));
  FERRY_TRY(const int mount, sys::mount_of(file.get()));
  entry.set_mnt_id(mount);
  auto* perms = entry.mutable_file_perms();
  perms->set_mode(st.st_mode);
  perms->set_uid(st.st_uid);
  perms->set_gid(st.st_gid);
  FERRY_TRY(std::string absolute, sys::read_link(fmt::format("/proc/self/fd/{}", file.get())));
  if (st.st_nlink == 0 || absolute.ends_with(kDeleted)) {
    entry.set_deleted(true);
    if (absolute.ends_with(kDeleted)) {
      absolute.resize(absolute.size() - kDeleted.size());
    }
  }
  if (path.front() == '/') {
    return {};
  }
  // What the name is relative to: the path of the file without it.
  const std::string tail = "/" + path;
  if (!absolute.ends_with(tail)) {
    return fail(Kind::unsupported, "{}: its name {} is relative, and the file is at {} now", probe.subject(), path,
                absolute);
  }
  absolute.resize(absolute.size() - tail.size());
  entry.set_name_dir(absolute.empty() ? "/" : absolute);
  return {};
}

Result<void> Collector::finish(DumpContext& context) {
  // By index: queues may add sockets.  Peers come after all queues, which may hold the other end.
  for (std::size_t i = 0; i < known_.size(); ++i) {
    const Known known = known_[i];
    if (known.diag.state == kListen) {
      FERRY_CHECK(check_pending(known));
    } else {
      FERRY_CHECK(collect_queue(known, context));
    }
  }
  for (const image::Entry& e : context.set.entries({image::Type::files})) {
    if (auto& file = static_cast<pb::FileEntry&>(*e.message); file.has_usk()) {
      entries_[file.id()] = file.mutable_usk();
    }
  }
  for (const Known& known : known_) {
    FERRY_CHECK(collect_peer(known, context));
  }
  return {};
}

Result<void> Collector::check_pending(const Known& listener) const {
  for (const std::uint32_t client : listener.diag.pending) {
    const auto found = by_inode_.find(client);
    if (found == by_inode_.end()) {
      return fail(Kind::unsupported,
                  "{}: a connection from outside of the tree (socket {}) waits for accept(2); try again",
                  listener.subject, client);
    }
    int unread = 0;
    const Known& known = known_[found->second];
    if (::ioctl(known.ours, SIOCOUTQ, &unread) != 0) {
      return sys_fail(fmt::format("ioctl({}, SIOCOUTQ)", known.subject));
    }
    if (unread > 0) {
      return fail(
          Kind::unsupported,
          "{}: it has sent data over a connection that is not accepted yet, where nobody can read it; try again",
          known.subject);
    }
  }
  return {};
}

Result<pb::UnixSkEntry*> Collector::entry_of(const Known& known) const {
  const auto found = entries_.find(known.id);
  if (found == entries_.end()) {
    return fail(Kind::corrupt, "{}: its entry is not in the set", known.subject);
  }
  return found->second;
}

Result<void> Collector::collect_peer(const Known& known, DumpContext& context) {
  FERRY_TRY(pb::UnixSkEntry * entry, entry_of(known));
  if (const auto listener = waiting_for_.find(entry->ino()); listener != waiting_for_.end()) {
    entry->set_peer(listener->second);
    return {};
  }
  if (entry->peer() == 0 || by_inode_.contains(entry->peer())) {
    return {};
  }
  if (entry->ino() == context.options.caller_socket) {
    entry->set_uflags(entry->uflags() | kCaller);
    entry->set_peer(0);
    return {};
  }
  if (is_external(context.options, entry->peer()) || is_external(context.options, entry->ino())) {
    return {};  // whoever restores gives the socket by --inherit-fd
  }
  if (!context.options.external_unix_sockets) {
    return fail(Kind::unsupported, "{}: it is connected to socket {} outside of the tree; --ext-unix-sk allows that",
                known.subject, entry->peer());
  }
  if (entry->type() != SOCK_DGRAM) {
    return fail(Kind::unsupported,
                "{}: it is connected to socket {} outside of the tree; with --ext-unix-sk only datagram sockets can be",
                known.subject, entry->peer());
  }
  return collect_external(known, context);
}

// An entry for the peer itself, so that it can be found by its name again.
Result<void> Collector::collect_external(const Known& known, DumpContext& context) {
  FERRY_TRY(const std::string name, name_of(known.ours, true, known.subject));
  if (name.empty()) {
    return fail(Kind::unsupported, "{}: it is connected to a socket outside of the tree that has no name",
                known.subject);
  }
  if (!external_.insert(*known.diag.peer).second) {
    return {};
  }
  pb::FileEntry file;
  file.set_type(pb::FD_UNIXSK);
  file.set_id(context.files.next_id());
  pb::UnixSkEntry& entry = *file.mutable_usk();
  FERRY_TRY(const pb::UnixSkEntry* own, entry_of(known));
  entry = *own;
  entry.set_id(file.id());
  entry.set_ino(*known.diag.peer);
  entry.set_state(kListen);
  entry.set_uflags(kExternal);
  entry.set_peer(0);
  entry.set_name(name);
  entry.clear_shutdown();
  entry.clear_file_perms();
  entry.clear_name_dir();
  entry.clear_deleted();
  context.set.add({image::Type::files}, std::move(file));
  return {};
}

Result<void> Collector::collect_queue(const Known& known, DumpContext& context) {
  FERRY_TRY(const std::vector<Packet> packets, peek(known.ours, known.diag.type, known.subject));
  for (const Packet& packet : packets) {
    pb::SkPacketEntry entry;
    entry.set_id_for(known.id);
    entry.set_length(static_cast<std::uint32_t>(packet.bytes.size()));
    if (!packet.sender.empty()) {
      entry.set_ferry_address(packet.sender);
    }
    if (packet.credentials && packet.credentials->pid != 0) {
      entry.set_ferry_pid(inner_pid(context, packet.credentials->pid));
      const userns::Owner owner = userns::inside(context, {packet.credentials->uid, packet.credentials->gid});
      entry.set_ferry_uid(owner.uid);
      entry.set_ferry_gid(owner.gid);
    }
    if (!packet.descriptors.empty()) {
      pb::ScmEntry& scm = *entry.add_scm();
      scm.set_type(SCM_RIGHTS);
      for (const UniqueFd& fd : packet.descriptors) {
        FERRY_TRY(const std::uint32_t id, context.files.add_description(context, *known.task, fd.get())
                                              .during("descriptor in the queue of {}", known.subject));
        scm.add_rights(id);
      }
    }
    context.set.add({image::Type::sk_queues}, std::move(entry), packet.bytes);
  }
  return {};
}

}  // namespace ferry::state::unix_socket
