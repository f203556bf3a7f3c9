// Unix sockets, restore: what their queues held, from whom it came.
#include <sys/socket.h>
#include <unistd.h>

#include "state/nested/nested.h"
#include "state/socket/options.h"
#include "state/unix_socket/name.h"
#include "state/unix_socket/queue.h"
#include "state/unix_socket/restore.h"
#include "state/unix_socket/unix_socket.h"
#include "state/userns/userns.h"

namespace ferry::state::unix_socket {
namespace {

constexpr std::uint32_t kNoInode = 0xffffffff;  // and below: of sockets that stand in for closed ones

Result<UniqueFd> datagram_socket(std::uint32_t network, RestoreContext& context) {
  FERRY_TRY(Inside* const inside, context.nested.inside_network(context, network));
  return inside->get<UniqueFd>([]() -> Result<UniqueFd> {
    UniqueFd made(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!made) {
      return sys_fail("socket(AF_UNIX)");
    }
    return made;
  });
}

}  // namespace

Result<void> Restorer::deliver(const pb::UnixSkEntry& entry, int fd, RestoreContext& context) {
  if (!delivered_.insert(entry.ino()).second) {
    return {};
  }
  const auto queue = queues_.find(entry.id());
  if (queue == queues_.end()) {
    return {};
  }
  for (const image::Entry* e : queue->second) {
    FERRY_CHECK(deliver(entry, fd, static_cast<const pb::SkPacketEntry&>(*e->message), e->extra, context));
  }
  return {};
}

Result<void> Restorer::deliver(const pb::UnixSkEntry& entry, int fd, const pb::SkPacketEntry& packet,
                               std::string_view bytes, RestoreContext& context) {
  Message message{.bytes = bytes};
  for (const pb::ScmEntry& scm : packet.scm()) {
    if (scm.type() != SCM_RIGHTS) {
      return fail(Kind::unsupported, "{}: control data of type {} in its queue", subject_of(entry), scm.type());
    }
    for (const std::uint32_t id : scm.rights()) {
      FERRY_TRY(const int in_flight, context.files.get(id));
      message.descriptors.push_back(in_flight);
    }
  }
  if (packet.has_ferry_pid()) {
    const RestoreTask* sender = packet.ferry_pid() == 0 ? nullptr : context.find(NsPid(packet.ferry_pid()));
    // unix(7), SCM_CREDENTIALS: the process has to exist, so for one that is gone ours has to do.
    const userns::Owner owner = userns::outside(context, {packet.ferry_uid(), packet.ferry_gid()});
    message.credentials = ucred{sender == nullptr ? ::getpid() : sender->pid.value, owner.uid, owner.gid};
  }
  const bool named = entry.type() == SOCK_DGRAM && packet.has_ferry_address();
  const pb::UnixSkEntry* other = partner(entry);
  const bool from_partner = named && other != nullptr && other->name() == packet.ferry_address() && made_as_pair(entry);
  if (!named || from_partner || entry.name().empty()) {
    FERRY_TRY(const int sender, sender_for(entry, fd, context));
    return send(sender, message, entry.type() == SOCK_STREAM, subject_of(entry));
  }
  FERRY_TRY(const int sender, sender_named(packet.ferry_address(), entry, context));
  const auto alias = aliases_.find(entry.ino());
  FERRY_TRY(const Address address, address_of(alias == aliases_.end() ? entry.name() : alias->second.path));
  message.to = reinterpret_cast<const sockaddr*>(&address.data);
  message.to_size = address.size;
  FERRY_TRY(Inside* const inside, context.nested.inside_of_mount(context, entry.mnt_id()));
  return inside->run([&]() -> Result<void> {
    FERRY_CHECK(enter_directory(entry.name_dir()));
    return send(sender, message, false, subject_of(entry));
  });
}

Result<int> Restorer::sender_named(const std::string& name, const pb::UnixSkEntry& to, RestoreContext& context) {
  if (const auto living = datagram_names_.find(name_in(to, name)); living != datagram_names_.end()) {
    return context.files.get(living->second->id());
  }
  if (const auto known = dead_senders_.find(name_in(to, name)); known != dead_senders_.end()) {
    return known->second.get();
  }
  // The message remembers the socket, so it may be closed and its name be gone by the time of the reading.
  FERRY_TRY(UniqueFd made, datagram_socket(to.ns_id(), context));
  pb::UnixSkEntry stand_in;
  stand_in.set_name(name);
  stand_in.set_name_dir(to.name_dir());
  stand_in.set_mnt_id(to.mnt_id());
  stand_in.set_deleted(true);
  stand_in.set_ino(kNoInode - static_cast<std::uint32_t>(dead_senders_.size()));
  FERRY_CHECK(bind(stand_in, made.get(), context).during("standing in for the closed socket {}", name.c_str()));
  return dead_senders_.emplace(name_in(to, name), std::move(made)).first->second.get();
}

// Whom the data comes from: the partner, be it closed later, or a helper that knows the name.
Result<int> Restorer::sender_for(const pb::UnixSkEntry& entry, int fd, RestoreContext& context) {
  int sender = -1;
  if (const auto closed = closed_ends_.find(entry.ino()); closed != closed_ends_.end()) {
    sender = closed->second.get();
  } else if (const pb::UnixSkEntry* other = partner(entry);
             other != nullptr && (entry.type() != SOCK_DGRAM || made_as_pair(entry))) {
    FERRY_TRY(sender, context.files.get(other->id()));
  } else if (entry.type() == SOCK_DGRAM && entry.peer() == entry.ino()) {
    sender = fd;
  } else if (const auto helper = senders_.find(entry.ino()); helper != senders_.end()) {
    return helper->second.get();
  } else if (entry.type() == SOCK_DGRAM && !entry.name().empty()) {
    FERRY_TRY(UniqueFd made, datagram_socket(entry.ns_id(), context));
    FERRY_CHECK(connect_by_name(entry, made.get(), std::nullopt, context));
    sender = made.get();
    senders_[entry.ino()] = std::move(made);
  } else {
    return fail(Kind::unsupported, "{} has data in its queue, and nobody who could have sent it", subject_of(entry));
  }
  // Room for as much as the queue held; a socket of the tree gets its own size back by its options.
  constexpr int kRoom = 64 << 20;
  FERRY_CHECK(socket::set_int(sender, SOL_SOCKET, SO_SNDBUFFORCE, kRoom, "SO_SNDBUFFORCE"));
  return sender;
}

}  // namespace ferry::state::unix_socket
