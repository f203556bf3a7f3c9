#include "state/unix_socket/restore.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>

#include "state/leftovers.h"
#include "state/socket/options.h"
#include "state/unix_socket/queue.h"
#include "state/unix_socket/unix_socket.h"
#include "sys/file.h"

namespace ferry::state::unix_socket {
namespace {

struct Address {
  sockaddr_un data{};
  socklen_t size = 0;
};

Result<Address> address_of(std::string_view name) {
  Address out;
  out.data.sun_family = AF_UNIX;
  if (name.size() > sizeof out.data.sun_path) {
    return fail(Kind::corrupt, "a Unix socket has a name of {} bytes", name.size());
  }
  std::memcpy(out.data.sun_path, name.data(), name.size());
  out.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  return out;
}

bool is_path(std::string_view name) { return !name.empty() && name.front() != '\0'; }

// Where a relative name counts from; the calling thread's directory is its own (state/inside.h).
Result<void> enter_directory(const std::string& directory) {
  if (::chdir(directory.empty() ? "/" : directory.c_str()) != 0) {
    return sys_fail(fmt::format("chdir({})", directory));
  }
  return {};
}

Result<void> unlink_stale(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) {
    return {};
  }
  if (!S_ISSOCK(st.st_mode)) {
    return fail(Kind::os, "{} is in the way of a socket and is not one itself", path);
  }
  if (::unlink(path.c_str()) != 0) {
    return sys_fail(fmt::format("unlink({})", path));
  }
  return {};
}

Result<void> restore_permissions(const std::string& path, const pb::UnixSkEntry& entry) {
  if (!entry.has_file_perms()) {
    return {};
  }
  const auto& perms = entry.file_perms();
  if (::chown(path.c_str(), perms.uid(), perms.gid()) != 0 || ::chmod(path.c_str(), perms.mode() & 07777) != 0) {
    return sys_fail(fmt::format("chown or chmod({})", path));
  }
  return {};
}

std::string subject_of(const pb::UnixSkEntry& entry) { return fmt::format("Unix socket {}", entry.ino()); }

}  // namespace

void Restorer::index(const image::Set& set) {
  if (indexed_) {
    return;
  }
  indexed_ = true;
  for (const auto* file : set.list<pb::FileEntry>({image::Type::files})) {
    if (file->has_usk()) {
      by_inode_.emplace(file->usk().ino(), &file->usk());
    }
  }
}

const pb::UnixSkEntry* Restorer::by_inode(std::uint32_t inode) const {
  const auto found = by_inode_.find(inode);
  return found == by_inode_.end() ? nullptr : found->second;
}

const pb::UnixSkEntry* Restorer::partner(const pb::UnixSkEntry& entry) const {
  const pb::UnixSkEntry* peer = entry.peer() == 0 ? nullptr : by_inode(entry.peer());
  return peer != nullptr && peer != &entry && peer->peer() == entry.ino() ? peer : nullptr;
}

const pb::UnixSkEntry* Restorer::accepted_from(const pb::UnixSkEntry& entry) const {
  if (entry.name().empty() || entry.type() == SOCK_DGRAM || entry.state() != kEstablished) {
    return nullptr;
  }
  for (const auto& [inode, other] : by_inode_) {
    if (other->state() == kListen && (other->uflags() & kExternal) == 0 && other->type() == entry.type() &&
        other->name() == entry.name()) {
      return other;
    }
  }
  return nullptr;
}

// The socket of a process that saved itself: the answer to its request waits in it, and says that this is
// the restored process (criu_resp with type DUMP, success, and dump.restored; docs/criu.md).
Result<UniqueFd> answered_socket(std::uint32_t type) {
  constexpr std::string_view kRestored{"\x08\x01\x10\x01\x1a\x02\x08\x01", 8};
  int ends[2];
  if (::socketpair(AF_UNIX, static_cast<int>(type) | SOCK_CLOEXEC, 0, ends) != 0) {
    return sys_fail("socketpair(AF_UNIX)");
  }
  UniqueFd theirs(ends[0]);
  const UniqueFd ours(ends[1]);
  if (::send(ours.get(), kRestored.data(), kRestored.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(kRestored.size())) {
    return sys_fail("send(the answer to a process that saved itself)");
  }
  return theirs;
}

Result<UniqueFd> Restorer::open(const pb::UnixSkEntry& entry, RestoreContext& context) {
  index(context.set);
  FERRY_TRY(UniqueFd given, socket::inherited(entry.ino(), context.options));
  if (given) {
    return given;
  }
  if ((entry.uflags() & kCaller) != 0) {
    return answered_socket(entry.type());
  }
  if (const auto half = halves_.find(entry.ino()); half != halves_.end()) {
    UniqueFd fd = std::move(half->second);
    halves_.erase(half);
    return fd;
  }
  const pb::UnixSkEntry* other = partner(entry);
  const bool orphan = entry.type() != SOCK_DGRAM && entry.state() == kEstablished && entry.peer() == 0;
  // Datagram sockets with names find each other by them.
  const bool pair = other != nullptr && (entry.type() != SOCK_DGRAM || other->name().empty() || entry.name().empty());
  Result<UniqueFd> fd = pair || orphan ? open_pair(entry, other, context) : open_single(entry, context);
  return std::move(fd).during("{}", subject_of(entry));
}

Result<UniqueFd> Restorer::open_pair(const pb::UnixSkEntry& entry, const pb::UnixSkEntry* other,
                                     RestoreContext& context) {
  const int type = static_cast<int>(entry.type()) | SOCK_CLOEXEC;
  // An accepted socket has its listener's name without having been bound: it has to be accepted again.
  const pb::UnixSkEntry* listener = accepted_from(entry);
  const bool other_accepted = listener == nullptr && other != nullptr && accepted_from(*other) != nullptr;
  if (other_accepted) {
    listener = accepted_from(*other);
  }
  UniqueFd mine, theirs;
  if (listener != nullptr) {
    FERRY_TRY(const int listening, context.files.get(listener->id()));
    FERRY_TRY(UniqueFd client, context.inside.get<UniqueFd>([&]() -> Result<UniqueFd> {
      UniqueFd made(::socket(AF_UNIX, type, 0));
      if (!made) {
        return sys_fail("socket(AF_UNIX)");
      }
      return made;
    }));
    FERRY_CHECK(connect_by_name(*listener, client.get(), context));
    UniqueFd accepted(::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC));
    if (!accepted) {
      return sys_fail("accept4");
    }
    mine = other_accepted ? std::move(client) : std::move(accepted);
    theirs = other_accepted ? std::move(accepted) : std::move(client);
  } else {
    FERRY_CHECK(context.inside.run([&]() -> Result<void> {
      int fds[2];
      if (::socketpair(AF_UNIX, type, 0, fds) != 0) {
        return sys_fail("socketpair");
      }
      mine.reset(fds[0]);
      theirs.reset(fds[1]);
      return {};
    }));
  }
  if (listener == nullptr || other_accepted) {
    FERRY_CHECK(bind(entry, mine.get(), context));
  }
  if (other == nullptr) {
    closed_ends_[entry.ino()] = std::move(theirs);
    return mine;
  }
  if (!other_accepted && !(other->name().empty())) {
    FERRY_CHECK(bind(*other, theirs.get(), context));
  }
  halves_[other->ino()] = std::move(theirs);
  return mine;
}

Result<UniqueFd> Restorer::open_single(const pb::UnixSkEntry& entry, RestoreContext& context) {
  FERRY_TRY(UniqueFd fd, context.inside.get<UniqueFd>([&]() -> Result<UniqueFd> {
    UniqueFd made(::socket(AF_UNIX, static_cast<int>(entry.type()) | SOCK_CLOEXEC, 0));
    if (!made) {
      return sys_fail("socket(AF_UNIX)");
    }
    return made;
  }));
  FERRY_CHECK(bind(entry, fd.get(), context));
  if (entry.state() == kListen && ::listen(fd.get(), static_cast<int>(entry.backlog())) != 0) {
    return sys_fail("listen");
  }
  return fd;
}

namespace {

// A failed restore takes the socket's name away again, unless somebody else has it by then.
// Called inside, in the directory that a relative name starts from.
void forget_unless_restored(const std::string& path, RestoreContext& context) {
  const std::size_t slash = path.rfind('/');
  const std::string parent = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  // By descriptor, because whoever runs inside is gone when leftovers are taken away.
  const auto directory = std::make_shared<UniqueFd>(::open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct stat made {};
  if (::lstat(path.c_str(), &made) != 0) {
    made = {};  // it is about to get this name; whatever socket has it then
  }
  context.leftovers.add([directory, name = path.substr(slash + 1), made] {
    struct stat now {};
    if (::fstatat(directory->get(), name.c_str(), &now, AT_SYMLINK_NOFOLLOW) == 0 && S_ISSOCK(now.st_mode) &&
        (made.st_ino == 0 || (now.st_ino == made.st_ino && now.st_dev == made.st_dev))) {
      ::unlinkat(directory->get(), name.c_str(), 0);
    }
  });
}

}  // namespace

Result<void> Restorer::bind(const pb::UnixSkEntry& entry, int fd, RestoreContext& context) {
  if (entry.name().empty()) {
    return {};
  }
  FERRY_TRY(const Address address, address_of(entry.name()));
  const auto* generic = reinterpret_cast<const sockaddr*>(&address.data);
  return context.inside.run([&]() -> Result<void> {
    if (!is_path(entry.name())) {
      if (::bind(fd, generic, address.size) != 0) {
        return sys_fail(fmt::format("bind(abstract name {})", entry.name().substr(1)));
      }
      return {};
    }
    FERRY_CHECK(enter_directory(entry.name_dir()));
    const std::string path = entry.name().c_str();
    const std::string aside = fmt::format("{}.ferry-{}", path, entry.ino());
    const bool deleted = entry.deleted();
    bool moved = false;
    if (deleted) {
      // Somebody else may have the name by now: it steps aside for the moment of the bind.
      moved = ::rename(path.c_str(), (aside + "-other").c_str()) == 0;
    } else {
      FERRY_CHECK(unlink_stale(path));
    }
    const mode_t mask = ::umask(0);
    const int bound = ::bind(fd, generic, address.size);
    const int error = errno;
    ::umask(mask);
    if (bound != 0) {
      return sys_fail(error, fmt::format("bind({})", path));
    }
    forget_unless_restored(path, context);
    FERRY_CHECK(restore_permissions(path, entry));
    if (deleted) {
      forget_unless_restored(aside, context);
      if (::rename(path.c_str(), aside.c_str()) != 0) {
        return sys_fail(fmt::format("rename({})", path));
      }
      aliases_[entry.ino()] = {entry.name_dir(), aside};
    }
    if (moved && ::rename((aside + "-other").c_str(), path.c_str()) != 0) {
      return sys_fail(fmt::format("rename({}-other)", aside));
    }
    return {};
  });
}

Result<void> Restorer::connect_by_name(const pb::UnixSkEntry& to, int fd, RestoreContext& context) const {
  const auto alias = aliases_.find(to.ino());
  const std::string name = alias == aliases_.end() ? to.name() : alias->second.path;
  FERRY_TRY(const Address address, address_of(name));
  return context.inside.run([&]() -> Result<void> {
    if (is_path(name)) {
      FERRY_CHECK(enter_directory(to.name_dir()));
    }
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address.data), address.size) != 0) {
      return sys_fail(fmt::format("connect({})", is_path(name) ? name.c_str() : "an abstract name"));
    }
    return {};
  });
}

Result<void> Restorer::connect(const pb::UnixSkEntry& entry, int fd, RestoreContext& context) {
  index(context.set);
  const pb::UnixSkEntry* peer = entry.peer() == 0 ? nullptr : by_inode(entry.peer());
  if (peer != nullptr) {
    const bool joined = partner(entry) != nullptr &&
                        (entry.type() != SOCK_DGRAM || peer->name().empty() || entry.name().empty());
    if (!joined) {
      if (peer->name().empty() && peer != &entry) {
        return fail(Kind::unsupported, "{} is connected to socket {}, which has no name to connect to",
                    subject_of(entry), peer->ino());
      }
      if ((peer->uflags() & kExternal) == 0) {
        FERRY_CHECK(context.files.get(peer->id()));
      }
      FERRY_CHECK(connect_by_name(*peer, fd, context).during("{}", subject_of(entry)));
    }
  } else if (entry.peer() != 0) {
    FERRY_TRY(const UniqueFd given, socket::inherited(entry.ino(), context.options));
    if (given) {
      return restore_fown(fd, entry.fown(), context);
    }
    return fail(Kind::unsupported, "{} is connected to socket {} outside of the tree; give --inherit-fd fd[N]:socket:[{}]",
                subject_of(entry), entry.peer(), entry.ino());
  }
  FERRY_CHECK(deliver(entry, fd, context));
  // What this socket has sent comes before the end of its sending.
  if (peer != nullptr && (peer->uflags() & kExternal) == 0) {
    FERRY_TRY(const int theirs, context.files.get(peer->id()));
    FERRY_CHECK(deliver(*peer, theirs, context));
  }
  const bool orphan = closed_ends_.erase(entry.ino()) != 0;
  if (entry.shutdown() != pb::SKSHUT_NONE && !orphan) {
    constexpr int how[] = {-1, SHUT_RD, SHUT_WR, SHUT_RDWR};
    if (::shutdown(fd, how[entry.shutdown()]) != 0) {
      return sys_fail(fmt::format("shutdown({})", subject_of(entry)));
    }
  }
  FERRY_CHECK(socket::restore_options(fd, entry.opts(), subject_of(entry)));
  FERRY_CHECK(restore_status_flags(fd, entry.flags()));
  return restore_fown(fd, entry.fown(), context);
}

Result<void> Restorer::deliver(const pb::UnixSkEntry& entry, int fd, RestoreContext& context) {
  if (!delivered_.insert(entry.ino()).second) {
    return {};
  }
  for (const image::Entry& e : context.set.entries({image::Type::sk_queues})) {
    const auto& packet = static_cast<const pb::SkPacketEntry&>(*e.message);
    if (packet.id_for() != entry.id()) {
      continue;
    }
    FERRY_TRY(const int sender, sender_for(entry, fd, context));
    std::vector<int> descriptors;
    for (const pb::ScmEntry& scm : packet.scm()) {
      if (scm.type() != SCM_RIGHTS) {
        return fail(Kind::unsupported, "{}: control data of type {} in its queue", subject_of(entry), scm.type());
      }
      for (const std::uint32_t id : scm.rights()) {
        FERRY_TRY(const int in_flight, context.files.get(id));
        descriptors.push_back(in_flight);
      }
    }
    FERRY_CHECK(send(sender, e.extra, descriptors, entry.type() == SOCK_STREAM, subject_of(entry)));
  }
  return {};
}

// Whom the data comes from: the partner, be it closed later, or a helper that knows the name.
Result<int> Restorer::sender_for(const pb::UnixSkEntry& entry, int fd, RestoreContext& context) {
  int sender = -1;
  if (const auto closed = closed_ends_.find(entry.ino()); closed != closed_ends_.end()) {
    sender = closed->second.get();
  } else if (const pb::UnixSkEntry* other = partner(entry);
             other != nullptr && (entry.type() != SOCK_DGRAM || other->name().empty() || entry.name().empty())) {
    FERRY_TRY(sender, context.files.get(other->id()));
  } else if (entry.type() == SOCK_DGRAM && entry.peer() == entry.ino()) {
    sender = fd;
  } else if (const auto helper = senders_.find(entry.ino()); helper != senders_.end()) {
    return helper->second.get();
  } else if (entry.type() == SOCK_DGRAM && !entry.name().empty() && entry.peer() == 0) {
    FERRY_TRY(UniqueFd made, context.inside.get<UniqueFd>([]() -> Result<UniqueFd> {
      UniqueFd s(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      if (!s) {
        return sys_fail("socket(AF_UNIX)");
      }
      return s;
    }));
    FERRY_CHECK(connect_by_name(entry, made.get(), context));
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

Result<void> Restorer::tidy(RestoreContext& context) {
  senders_.clear();
  closed_ends_.clear();
  halves_.clear();
  auto aliases = std::move(aliases_);
  aliases_.clear();
  for (const auto& [inode, alias] : aliases) {
    auto gone = context.inside.run([&, &a = alias]() -> Result<void> {
      FERRY_CHECK(enter_directory(a.directory));
      if (::unlink(a.path.c_str()) != 0) {
        return sys_fail(fmt::format("unlink({})", a.path));
      }
      return {};
    });
    FERRY_CHECK(std::move(gone));
  }
  return {};
}

}  // namespace ferry::state::unix_socket
