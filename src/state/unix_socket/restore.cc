#include "state/unix_socket/restore.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "state/leftovers.h"
#include "state/nested/nested.h"
#include "state/socket/options.h"
#include "state/unix_socket/name.h"
#include "state/unix_socket/queue.h"
#include "state/unix_socket/unix_socket.h"
#include "sys/file.h"

namespace ferry::state::unix_socket {
namespace {

bool is_path(std::string_view name) { return !name.empty() && name.front() != '\0'; }

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

}  // namespace

void Restorer::index(const image::Set& set) {
  if (indexed_) {
    return;
  }
  indexed_ = true;
  for (const auto* file : set.list<pb::FileEntry>({image::Type::files})) {
    if (!file->has_usk()) {
      continue;
    }
    const pb::UnixSkEntry& entry = file->usk();
    by_inode_.emplace(entry.ino(), &entry);
    if (entry.name().empty() || (entry.uflags() & kExternal) != 0) {
      continue;
    }
    if (entry.type() == SOCK_DGRAM) {
      datagram_names_.emplace(name_in(entry, entry.name()), &entry);
    } else if (entry.state() == kListen) {
      listeners_.emplace(std::pair(entry.type(), name_in(entry, entry.name())), &entry);
    }
  }
  for (const image::Entry& e : set.entries({image::Type::sk_queues})) {
    queues_[static_cast<const pb::SkPacketEntry&>(*e.message).id_for()].push_back(&e);
  }
  for (const auto& [inode, entry] : by_inode_) {
    const auto caller = caller_of_peer(*entry);
    const pb::UnixSkEntry* other = partner(*entry);
    const bool first = other == nullptr || inode < other->ino();
    if (caller && first && made_as_pair(*entry)) {
      ++pairs_wanted_[pair_kind(*caller, *entry)];
    }
  }
  for (const image::Name& name : set.names(image::Type::ids)) {
    const auto ids = set.one<pb::TaskKobjIdsEntry>(name);
    if (!ids.has_value()) {
      continue;
    }
    for (const auto* row : set.list<pb::FdinfoEntry>({image::Type::fdinfo, (*ids)->files_id()})) {
      if (row->type() == pb::FD_UNIXSK) {
        owners_.emplace(row->id(), static_cast<std::uint32_t>(name.id));
      }
    }
  }
}

Restorer::Name Restorer::name_in(const pb::UnixSkEntry& place, const std::string& name) {
  return {is_path(name) ? 0 : place.ns_id(), name};
}

Restorer::PairKind Restorer::pair_kind(const Caller& caller, const pb::UnixSkEntry& entry) {
  return {caller, static_cast<int>(entry.type()), entry.ns_id()};
}

// By socketpair(2), and not by connect(2) and accept(2).
bool Restorer::made_as_pair(const pb::UnixSkEntry& entry) const {
  const pb::UnixSkEntry* other = partner(entry);
  const bool orphan =
      entry.state() == kEstablished && entry.peer() == 0 && (entry.type() != SOCK_DGRAM || entry.name().empty());
  // Datagram sockets with names find each other by them.
  const bool pair = other != nullptr && (entry.type() != SOCK_DGRAM || other->name().empty() || entry.name().empty());
  return (pair || orphan) && accepted_from(entry) == nullptr && (other == nullptr || accepted_from(*other) == nullptr);
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
  const auto found = listeners_.find({entry.type(), name_in(entry, entry.name())});
  return found == listeners_.end() ? nullptr : found->second;
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
  const bool orphan =
      entry.state() == kEstablished && entry.peer() == 0 && (entry.type() != SOCK_DGRAM || entry.name().empty());
  // Datagram sockets with names find each other by them.
  const bool pair = other != nullptr && (entry.type() != SOCK_DGRAM || other->name().empty() || entry.name().empty());
  Result<UniqueFd> fd = pair || orphan ? open_pair(entry, other, context) : open_single(entry, context);
  return std::move(fd).during("{}", subject_of(entry));
}

Result<OnBehalf::Pair> Restorer::make_pair(const pb::UnixSkEntry& entry, const pb::UnixSkEntry* other,
                                           RestoreContext& context) {
  auto caller = caller_of_peer(entry);
  if (!caller && other != nullptr) {
    caller = caller_of_peer(*other);
  }
  if (!caller) {  // a set of CRIU
    FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
    return inside->get<OnBehalf::Pair>([&]() -> Result<OnBehalf::Pair> {
      int fds[2];
      if (::socketpair(AF_UNIX, static_cast<int>(entry.type()) | SOCK_CLOEXEC, 0, fds) != 0) {
        return sys_fail("socketpair");
      }
      return OnBehalf::Pair(UniqueFd(fds[0]), UniqueFd(fds[1]));
    });
  }
  const PairKind key = pair_kind(*caller, entry);
  auto& ready = prepared_[key];
  if (ready.empty()) {
    const std::size_t wanted = std::max<std::size_t>(std::exchange(pairs_wanted_[key], 1), 1);
    FERRY_TRY(ready, OnBehalf::pairs(*caller, static_cast<int>(entry.type()), entry.ns_id(), wanted, context));
  }
  OnBehalf::Pair made = std::move(ready.back());
  ready.pop_back();
  return made;
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
    // The accepted one is in the network namespace of the one that connects.
    FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
    FERRY_TRY(UniqueFd client, inside->get<UniqueFd>([&]() -> Result<UniqueFd> {
      UniqueFd made(::socket(AF_UNIX, type, 0));
      if (!made) {
        return sys_fail("socket(AF_UNIX)");
      }
      return made;
    }));
    // What the accepted one remembers of its peer is who connected.
    const auto caller = caller_of_peer(other_accepted ? *other : entry);
    FERRY_CHECK(connect_by_name(*listener, client.get(), caller, context));
    UniqueFd accepted(::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC));
    if (!accepted) {
      return sys_fail("accept4");
    }
    mine = other_accepted ? std::move(client) : std::move(accepted);
    theirs = other_accepted ? std::move(accepted) : std::move(client);
  } else {
    FERRY_TRY(OnBehalf::Pair made, make_pair(entry, other, context));
    mine = std::move(made.first);
    theirs = std::move(made.second);
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
  FERRY_TRY(Inside* const inside, context.nested.inside_network(context, entry.ns_id()));
  FERRY_TRY(UniqueFd fd, inside->get<UniqueFd>([&]() -> Result<UniqueFd> {
    UniqueFd made(::socket(AF_UNIX, static_cast<int>(entry.type()) | SOCK_CLOEXEC, 0));
    if (!made) {
      return sys_fail("socket(AF_UNIX)");
    }
    return made;
  }));
  FERRY_CHECK(bind(entry, fd.get(), context));
  if (entry.state() == kListen) {
    const int backlog = static_cast<int>(entry.backlog());
    if (const auto caller = caller_of_peer(entry)) {
      FERRY_CHECK(OnBehalf::listen(*caller, fd.get(), backlog, context));
    } else if (::listen(fd.get(), backlog) != 0) {
      return sys_fail("listen");
    }
  }
  return fd;
}

namespace {

// A failed restore takes the socket's name away again, unless somebody else has it by then.
// Called inside, in the directory that a relative name starts from.
Result<void> forget_unless_restored(const std::string& path, RestoreContext& context) {
  const std::size_t slash = path.rfind('/');
  const std::string parent = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  // By descriptor, because whoever runs inside is gone when leftovers are taken away.
  const auto directory = std::make_shared<UniqueFd>(::open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!*directory) {
    Result<void> failed = sys_fail(fmt::format("open({})", parent));
    ::unlink(path.c_str());
    return failed;
  }
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
  return {};
}

}  // namespace

Result<void> Restorer::bind(const pb::UnixSkEntry& entry, int fd, RestoreContext& context) {
  if (entry.name().empty()) {
    return {};
  }
  FERRY_TRY(const Address address, address_of(entry.name()));
  const auto* generic = reinterpret_cast<const sockaddr*>(&address.data);
  FERRY_TRY(Inside* const inside, context.nested.inside_of_mount(context, entry.mnt_id()));
  return inside->run([&]() -> Result<void> {
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
    FERRY_CHECK(forget_unless_restored(path, context));
    FERRY_CHECK(restore_permissions(path, entry));
    if (deleted) {
      FERRY_CHECK(forget_unless_restored(aside, context));
      if (::rename(path.c_str(), aside.c_str()) != 0) {
        return sys_fail(fmt::format("rename({})", path));
      }
      aliases_[entry.ino()] = {entry.name_dir(), aside, entry.mnt_id()};
    }
    if (moved && ::rename((aside + "-other").c_str(), path.c_str()) != 0) {
      return sys_fail(fmt::format("rename({}-other)", aside));
    }
    return {};
  });
}

// From its own directory, which whoever connects gets by descriptor: it may have another mount namespace.
static Result<void> connect_on_behalf(const Caller& caller, int fd, const std::string& name,
                                      const std::string& directory, Inside& inside, RestoreContext& context) {
  UniqueFd start;
  std::string rest = name;
  if (is_path(name)) {
    std::string parent = directory;
    if (name.front() == '/') {
      const std::size_t slash = std::string(name.c_str()).rfind('/');
      parent = slash == 0 ? "/" : name.substr(0, slash);
      rest = name.substr(slash + 1);
    }
    FERRY_TRY(start, inside.get<UniqueFd>([&] { return sys::open(parent, O_PATH | O_DIRECTORY); }));
  }
  FERRY_TRY(const Address address, address_of(rest));
  return OnBehalf::connect(caller, fd, reinterpret_cast<const sockaddr*>(&address.data), address.size, start.get(),
                           context);
}

Result<void> Restorer::connect_by_name(const pb::UnixSkEntry& to, int fd, const std::optional<Caller>& caller,
                                       RestoreContext& context) const {
  const auto alias = aliases_.find(to.ino());
  const std::string name = alias == aliases_.end() ? to.name() : alias->second.path;
  FERRY_TRY(const Address address, address_of(name));
  const auto* generic = reinterpret_cast<const sockaddr*>(&address.data);
  const std::string directory = is_path(name) && !to.name_dir().empty() ? to.name_dir() : "/";
  FERRY_TRY(Inside* const inside, context.nested.inside_of_mount(context, to.mnt_id()));
  if (caller && to.type() != SOCK_DGRAM) {
    return connect_on_behalf(*caller, fd, name, directory, *inside, context)
        .during("connecting to {}", is_path(name) ? name.c_str() : "an abstract name");
  }
  return inside->run([&]() -> Result<void> {
    FERRY_CHECK(enter_directory(directory));
    if (::connect(fd, generic, address.size) != 0) {
      return sys_fail(fmt::format("connect({})", is_path(name) ? name.c_str() : "an abstract name"));
    }
    return {};
  });
}

// A connection that waits for accept(2): its server will be told who made it.
std::optional<Caller> Restorer::owner_of(const pb::UnixSkEntry& entry, const RestoreContext& context) const {
  const auto owner = owners_.find(entry.id());
  const RestoreTask* task = owner == owners_.end() ? nullptr : context.find(NsPid(static_cast<pid_t>(owner->second)));
  if (task == nullptr || task->mm == nullptr || !task->core->thread_core().has_creds()) {
    return std::nullopt;
  }
  const pb::CredsEntry& creds = task->core->thread_core().creds();
  return Caller{task->ns_pid().value, creds.euid(), creds.egid()};
}

Result<void> Restorer::connect(const pb::UnixSkEntry& entry, int fd, RestoreContext& context) {
  index(context.set);
  const pb::UnixSkEntry* peer = entry.peer() == 0 ? nullptr : by_inode(entry.peer());
  if (entry.type() == SOCK_DGRAM) {
    // Once it is connected it takes messages from its peer only (connect(2)).
    FERRY_CHECK(deliver(entry, fd, context));
  }
  if (peer != nullptr) {
    const bool joined =
        partner(entry) != nullptr && (entry.type() != SOCK_DGRAM || peer->name().empty() || entry.name().empty());
    if (!joined) {
      if (peer->name().empty() && peer != &entry) {
        return fail(Kind::unsupported, "{} is connected to socket {}, which has no name to connect to",
                    subject_of(entry), peer->ino());
      }
      if ((peer->uflags() & kExternal) == 0) {
        FERRY_CHECK(context.files.get(peer->id()));
      }
      FERRY_CHECK(connect_by_name(*peer, fd, owner_of(entry, context), context).during("{}", subject_of(entry)));
    }
  } else if (entry.peer() != 0) {
    FERRY_TRY(const UniqueFd given, socket::inherited(entry.ino(), context.options));
    if (given) {
      return restore_fown(fd, entry.fown(), context);
    }
    return fail(Kind::unsupported,
                "{} is connected to socket {} outside of the tree; give --inherit-fd fd[N]:socket:[{}]",
                subject_of(entry), entry.peer(), entry.ino());
  }
  FERRY_CHECK(deliver(entry, fd, context));
  // What this socket has sent comes before the end of its sending.
  if (peer != nullptr && (peer->uflags() & kExternal) == 0) {
    FERRY_TRY(const int theirs, context.files.get(peer->id()));
    FERRY_CHECK(deliver(*peer, theirs, context));
  }
  if (entry.has_ferry_peek_offset()) {
    FERRY_CHECK(socket::set_int(fd, SOL_SOCKET, SO_PEEK_OFF, entry.ferry_peek_offset(), "SO_PEEK_OFF"));
  }
  if (entry.ferry_reset() && closed_ends_.contains(entry.ino())) {
    // Something unread in the end that is about to be closed.
    FERRY_CHECK(send(fd, {.bytes = "x"}, true, subject_of(entry)));
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

Result<void> Restorer::tidy(RestoreContext& context) {
  senders_.clear();
  dead_senders_.clear();
  prepared_.clear();
  closed_ends_.clear();
  halves_.clear();
  auto aliases = std::move(aliases_);
  aliases_.clear();
  for (const auto& [inode, alias] : aliases) {
    FERRY_TRY(Inside* const inside, context.nested.inside_of_mount(context, alias.mount));
    auto gone = inside->run([&, &a = alias]() -> Result<void> {
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
