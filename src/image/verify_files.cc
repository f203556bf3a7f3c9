// verify(): descriptors, open files and what queues hold.
#include <sys/stat.h>

#include <climits>

#include "image/findings.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/mount.pb.h"
#include "image/proto/pstree.pb.h"
#include "image/proto/remap.pb.h"

namespace ferry::image {
namespace {

constexpr std::uint32_t kTcp = 6;
constexpr std::uint32_t kTcpClosed = 7;  // TCP_CLOSE
constexpr std::uint32_t kExternal = 1;   // uflags of a socket whose other end is outside
constexpr std::uint32_t kScmRights = 1;

// The file named by an id inside a message of its own, as every open file has it.
std::uint32_t id_inside(const google::protobuf::Message& body) {
  const auto* field = body.GetDescriptor()->FindFieldByName("id");
  return field == nullptr ? 0 : body.GetReflection()->GetUInt32(body, field);
}

class Files {
 public:
  Files(const Set& set, const FileIndex& files, Findings& out) : set_(set), files_(files), out_(out) {
    for (const auto* inode : set.list<pb::MemfdInodeEntry>({Type::memfd, 0})) {
      memfd_inodes_.insert(inode->inode_id());
    }
    for (const auto* tty : set.list<pb::TtyInfoEntry>({Type::tty_info, 0})) {
      ttys_.insert(tty->id());
    }
    for (const Name name : set.names(Type::mountpoints)) {
      for (const auto* mount : set.list<pb::MntEntry>(name)) {
        mounts_.insert(mount->mnt_id());
      }
    }
    for (const auto* entry : set.list<pb::FileEntry>({Type::files, 0})) {
      if (entry->has_usk()) {
        unix_inodes_.insert(entry->usk().ino());
      }
    }
    const auto inventory = set.list<pb::InventoryEntry>({Type::inventory, 0});
    tcp_closed_ = !inventory.empty() && inventory.front()->tcp_close();
  }

  void check() {
    std::set<std::pair<pb::FdType, std::uint32_t>> seen;
    for (const auto* entry : set_.list<pb::FileEntry>({Type::files, 0})) {
      out_.require(seen.emplace(entry->type(), entry->id()).second, "files.img: file {} is there twice", entry->id());
      const auto* body = file_body(*entry);
      if (body == nullptr) {
        out_.add("files.img: file {} does not have what its type {} says", entry->id(), pb::FdType_Name(entry->type()));
        continue;
      }
      out_.require(id_inside(*body) == entry->id(), "files.img: file {} is {} inside", entry->id(), id_inside(*body));
      check_file(*entry);
    }
  }

 private:
  void regular(std::uint32_t id, std::uint32_t regular, std::string_view what) {
    out_.require(files_.has(pb::FD_REG, regular), "files.img: {} {} has path {}, which is no REG file", what, id,
                 regular);
  }
  void mount(std::uint32_t id, std::int32_t mount) {
    out_.require(mount < 0 || mounts_.empty() || mounts_.contains(static_cast<std::uint32_t>(mount)),
                 "files.img: file {} is on mount {}, which no mountpoints image has", id, mount);
  }

  void check_file(const pb::FileEntry& entry) {
    const auto id = entry.id();
    switch (entry.type()) {
      case pb::FD_REG:
        mount(id, entry.reg().mnt_id());
        out_.require(entry.reg().ext() || entry.reg().name().starts_with('/'),
                     "files.img: the path of file {} does not start with /", id);
        break;
      case pb::FD_FIFO:
        regular(id, entry.fifo().regf_id(), "FIFO");
        break;
      case pb::FD_TTY:
        out_.require(!entry.tty().has_regf_id() || files_.has(pb::FD_REG, entry.tty().regf_id()),
                     "files.img: terminal {} has path {}, which is no REG file", id, entry.tty().regf_id());
        out_.require(ttys_.contains(entry.tty().tty_info_id()), "files.img: terminal {} wants {} of tty-info.img", id,
                     entry.tty().tty_info_id());
        break;
      case pb::FD_MEMFD:
        out_.require(memfd_inodes_.contains(entry.memfd().inode_id()),
                     "files.img: memory file {} wants inode {} of memfd.img", id, entry.memfd().inode_id());
        break;
      case pb::FD_INETSK: {
        const auto& socket = entry.isk();
        const Name stream{Type::tcp_stream, socket.ino()};
        const bool connected = socket.proto() == kTcp && socket.dst_port() != 0 && socket.state() != kTcpClosed;
        out_.require(!connected || tcp_closed_ || set_.has(stream),
                     "files.img: TCP connection {} wants {}, which is missing", id, file_name(stream));
        break;
      }
      case pb::FD_UNIXSK: {
        const auto& socket = entry.usk();
        mount(id, socket.mnt_id());
        out_.require(socket.peer() == 0 || unix_inodes_.contains(socket.peer()) || (socket.uflags() & kExternal) != 0,
                     "files.img: the peer of Unix socket {} is inode {}, which is not there", id, socket.peer());
        break;
      }
      default:
        break;
    }
  }

  const Set& set_;
  const FileIndex& files_;
  Findings& out_;
  std::set<std::uint64_t> memfd_inodes_;
  std::set<std::uint32_t> ttys_;
  std::set<std::uint32_t> mounts_;
  std::set<std::uint32_t> unix_inodes_;
  bool tcp_closed_ = false;
};

// Descriptors by task, for what names a task and one of its descriptors.
void verify_descriptors(const Set& set, const FileIndex& files, Findings& out) {
  std::map<std::uint64_t, std::set<std::uint32_t>> tables;
  for (const Name name : set.names(Type::fdinfo)) {
    auto& table = tables[name.id];
    for (const auto* fd : set.list<pb::FdinfoEntry>(name)) {
      out.require(fd->fd() <= INT_MAX && table.insert(fd->fd()).second,
                  "{}: descriptor {} is impossible or there twice", file_name(name), fd->fd());
      out.require(files.has(fd->type(), fd->id()),
                  "{}: descriptor {} wants file {} of type {}, which is not in files.img", file_name(name), fd->fd(),
                  fd->id(), pb::FdType_Name(fd->type()));
    }
  }
  for (const auto* lock : set.list<pb::FileLockEntry>({Type::filelocks, 0})) {
    const auto ids = set.list<pb::TaskKobjIdsEntry>({Type::ids, static_cast<std::uint64_t>(lock->pid())});
    const bool there = !ids.empty() && lock->fd() >= 0 &&
                       tables[ids.front()->files_id()].contains(static_cast<std::uint32_t>(lock->fd()));
    out.require(there, "filelocks.img: descriptor {} of pid {} holds a lock and is not there", lock->fd(), lock->pid());
  }
}

// Whether a deleted file comes back with the length that the file entry says.
void verify_ghost(const Set& set, Name ghost, std::uint32_t file, Findings& out) {
  const auto& entries = set.entries(ghost);
  const auto list = set.list<pb::GhostFileEntry>(ghost);
  if (list.empty() || !S_ISREG(list.front()->mode())) {
    return;
  }
  const std::uint64_t length = list.front()->chunks() ? list.front()->size() : entries.front().extra.size();
  for (const auto* entry : set.list<pb::FileEntry>({Type::files, 0})) {
    if (entry->id() == file && entry->has_reg() && entry->reg().has_size()) {
      out.require(entry->reg().size() == length, "{} makes a file of {} bytes, and file {} has {}", file_name(ghost),
                  length, file, entry->reg().size());
    }
  }
}

void verify_remaps(const Set& set, const FileIndex& files, Findings& out) {
  std::set<std::uint64_t> ghosts;
  for (const auto* remap : set.list<pb::RemapFilePathEntry>({Type::remap_fpath, 0})) {
    const auto id = remap->remap_id();
    out.require(files.has(pb::FD_REG, remap->orig_id()), "remap-fpath.img: {} is no REG file", remap->orig_id());
    if (remap->remap_type() == pb::REMAP_GHOST) {
      ghosts.insert(id);
      const Name ghost{Type::ghost_file, id};
      out.require(set.has(ghost), "remap-fpath.img: file {} wants {}, which is missing", remap->orig_id(),
                  file_name(ghost));
      verify_ghost(set, ghost, remap->orig_id(), out);
    } else if (remap->remap_type() == pb::REMAP_LINKED && remap->has_remap_type()) {
      out.require(files.has(pb::FD_REG, id), "remap-fpath.img: file {} wants {}, which is no REG file",
                  remap->orig_id(), id);
    }
  }
  for (const Name ghost : set.names(Type::ghost_file)) {
    out.require(ghosts.contains(ghost.id), "{}: no file of remap-fpath.img wants it", file_name(ghost));
  }
}

}  // namespace

FileIndex::FileIndex(const Set& set) {
  for (const auto* entry : set.list<pb::FileEntry>({Type::files, 0})) {
    files_.emplace(entry->type(), entry->id());
    ids_.insert(entry->id());
  }
}

const google::protobuf::Message* file_body(const pb::FileEntry& entry) {
  const auto pick = [](bool has, const google::protobuf::Message& body) { return has ? &body : nullptr; };
  switch (entry.type()) {
    case pb::FD_REG:
      return pick(entry.has_reg(), entry.reg());
    case pb::FD_PIPE:
      return pick(entry.has_pipe(), entry.pipe());
    case pb::FD_FIFO:
      return pick(entry.has_fifo(), entry.fifo());
    case pb::FD_INETSK:
      return pick(entry.has_isk(), entry.isk());
    case pb::FD_UNIXSK:
      return pick(entry.has_usk(), entry.usk());
    case pb::FD_EVENTFD:
      return pick(entry.has_efd(), entry.efd());
    case pb::FD_EVENTPOLL:
      return pick(entry.has_epfd(), entry.epfd());
    case pb::FD_INOTIFY:
      return pick(entry.has_ify(), entry.ify());
    case pb::FD_SIGNALFD:
      return pick(entry.has_sgfd(), entry.sgfd());
    case pb::FD_PACKETSK:
      return pick(entry.has_psk(), entry.psk());
    case pb::FD_TTY:
      return pick(entry.has_tty(), entry.tty());
    case pb::FD_FANOTIFY:
      return pick(entry.has_ffy(), entry.ffy());
    case pb::FD_NETLINKSK:
      return pick(entry.has_nlsk(), entry.nlsk());
    case pb::FD_NS:
      return pick(entry.has_nsf(), entry.nsf());
    case pb::FD_TUNF:
      return pick(entry.has_tunf(), entry.tunf());
    case pb::FD_EXT:
      return pick(entry.has_ext(), entry.ext());
    case pb::FD_TIMERFD:
      return pick(entry.has_tfd(), entry.tfd());
    case pb::FD_MEMFD:
      return pick(entry.has_memfd(), entry.memfd());
    case pb::FD_BPFMAP:
      return pick(entry.has_bpf(), entry.bpf());
    case pb::FD_PIDFD:
      return pick(entry.has_pidfd(), entry.pidfd());
    case pb::FD_FERRY_IO_URING:
      return pick(entry.has_ferry_io_uring(), entry.ferry_io_uring());
    case pb::FD_UND:
    case pb::FD_CTL_TTY:
    case pb::FD_AUTOFS_PIPE:
      break;
  }
  return nullptr;
}

void verify_files(const Set& set, const FileIndex& files, Findings& out) {
  Files(set, files, out).check();
  verify_descriptors(set, files, out);
  verify_remaps(set, files, out);
  for (const auto* inode : set.list<pb::MemfdInodeEntry>({Type::memfd, 0})) {
    const Name pages{Type::pagemap_shmem, inode->shmid()};
    out.require(set.has(pages), "memfd.img: inode {} wants {}, which is missing", inode->inode_id(), file_name(pages));
  }
}

void verify_queues(const Set& set, const FileIndex& files, Findings& out) {
  std::set<std::uint32_t> pipes;
  std::set<std::uint32_t> fifos;
  for (const auto* entry : set.list<pb::FileEntry>({Type::files, 0})) {
    if (entry->has_pipe()) {
      pipes.insert(entry->pipe().pipe_id());
    }
    if (entry->has_fifo()) {
      fifos.insert(entry->fifo().pipe_id());
    }
  }
  const auto check = [&](Type type, const std::set<std::uint32_t>& known) {
    std::set<std::uint32_t> seen;
    for (const auto* data : set.list<pb::PipeDataEntry>({type, 0})) {
      out.require(known.contains(data->pipe_id()), "{}: no file is an end of pipe {}", file_name({type, 0}),
                  data->pipe_id());
      out.require(seen.insert(data->pipe_id()).second, "{}: pipe {} is there twice", file_name({type, 0}),
                  data->pipe_id());
    }
  };
  check(Type::pipes_data, pipes);
  check(Type::fifo_data, fifos);

  for (const auto* packet : set.list<pb::SkPacketEntry>({Type::sk_queues, 0})) {
    out.require(files.has_any(packet->id_for()), "sk-queues.img: no file {}, which data is for", packet->id_for());
    for (const auto& control : packet->scm()) {
      out.require(control.type() == kScmRights, "sk-queues.img: data for {} has a control message of type {}",
                  packet->id_for(), control.type());
      for (const auto id : control.rights()) {
        out.require(files.has_any(id), "sk-queues.img: data for {} carries file {}, which is not there",
                    packet->id_for(), id);
      }
    }
  }
  std::set<std::uint32_t> ttys;
  for (const auto* tty : set.list<pb::TtyInfoEntry>({Type::tty_info, 0})) {
    ttys.insert(tty->id());
  }
  for (const auto* data : set.list<pb::TtyDataEntry>({Type::tty_data, 0})) {
    out.require(ttys.contains(data->tty_id()), "tty-data.img: no terminal {} in tty-info.img", data->tty_id());
  }
}

}  // namespace ferry::image
