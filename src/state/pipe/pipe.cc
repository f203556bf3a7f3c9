#include "state/pipe/pipe.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <map>
#include <set>
#include <utility>

#include "base/log.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

constexpr std::uint32_t kPacketMode = O_DIRECT;

class PipeKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "pipe"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_PIPE; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    return S_ISFIFO(probe.stat.st_mode) && probe.link.starts_with("pipe:[");
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    pb::PipeEntry& entry = *out.mutable_pipe();
    const bool packets = (probe.status_flags() & kPacketMode) != 0;
    entry.set_id(out.id());
    entry.set_pipe_id(static_cast<std::uint32_t>(probe.stat.st_ino));
    entry.set_flags(probe.status_flags() & ~kPacketMode);
    if (packets) {
      entry.set_ferry_packet_mode(true);
    }
    FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
    note_peer(probe);
    if ((probe.status_flags() & O_ACCMODE) != O_WRONLY && seen_.insert(entry.pipe_id()).second) {
      FERRY_TRY(const PipeContent content, peek_pipe(probe.ours, probe.subject()));
      add_pipe_content(context.set, image::Type::pipes_data, entry.pipe_id(), content);
    }
    return {};
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::PipeEntry& entry = file.pipe();
    index(context.set);
    FERRY_TRY(Ends * ends, this->ends(entry, context));
    const int flags = static_cast<int>(entry.flags() | (entry.ferry_packet_mode() ? kPacketMode : 0));
    if (ends->other >= 0) {  // an inherited descriptor that is not a pipe: what it refers to is shared as it is
      return sys::duplicate(ends->other);
    }
    // A description of its own for every entry: status flags are a description's.  The first gets the one
    // that pipe2(2) made, because a description that open(2) makes shows O_LARGEFILE.
    const bool writes = (flags & O_ACCMODE) == O_WRONLY;
    const bool both = (flags & O_ACCMODE) == O_RDWR;
    bool& given = writes ? ends->write_given : ends->read_given;
    const int from = writes ? ends->write.get() : ends->read.get();
    UniqueFd fd;
    if (given || both) {
      FERRY_TRY(fd, sys::open(fmt::format("/proc/self/fd/{}", from), flags & ~(O_NONBLOCK | O_DIRECT))
                        .during("opening an end of pipe {}", entry.pipe_id()));
    } else {
      FERRY_TRY(fd, sys::duplicate(from));
      given = true;
    }
    FERRY_CHECK(restore_status_flags(fd.get(), static_cast<std::uint32_t>(flags)));
    return fd;
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    return restore_fown(fd, file.pipe().fown(), context);
  }

  // Everything is open now.  Ends that nobody in the tree has must not be kept open by us, or no reader
  // would see the end of file.
  Result<void> settle(const pb::FileEntry&, const pb::FdinfoEntry&, RestoreTask&, RestoreContext&,
                      tracee::Batch&) override {
    pipes_.clear();
    return {};
  }

 private:
  struct Ends {
    UniqueFd read, write;
    bool read_given = false, write_given = false;  // to an entry
    int other = -1;
  };

  static void note_peer(const FdProbe& probe) {
    // Only a remark: runc hands such pipes over by --inherit-fd, and a lone end is ordinary as well.
    struct pollfd p {};
    p.fd = probe.ours;
    p.events = POLLIN | POLLOUT;
    if (::poll(&p, 1, 0) >= 0) {
      log::debug("{}: {}", probe.subject(),
                 (p.revents & (POLLERR | POLLHUP)) != 0 ? "the other end is closed" : "the other end is open");
    }
  }

  Result<Ends*> ends(const pb::PipeEntry& entry, RestoreContext& context) {
    const std::uint32_t pipe_id = entry.pipe_id();
    if (const auto known = pipes_.find(pipe_id); known != pipes_.end()) {
      return &known->second;
    }
    Ends made;
    const std::string key = fmt::format("pipe:[{}]", pipe_id);
    for (const InheritFd& inherited : context.options.inherit_fds) {
      if (inherited.key == key) {
        FERRY_CHECK(take_inherited(inherited.fd, key, made));
      }
    }
    if (!made.read && made.other < 0) {
      int fds[2];
      if (::pipe2(fds, O_CLOEXEC) != 0) {
        return sys_fail("pipe2");
      }
      made.read.reset(fds[0]);
      made.write.reset(fds[1]);
    }
    if (made.other < 0) {
      // Packets are made by the writer's flag (pipe(2), O_DIRECT), so the writer that fills has it as well.
      const std::string path = fmt::format("/proc/self/fd/{}", made.write.get());
      FERRY_TRY(const UniqueFd filler, sys::open(path, O_WRONLY | O_NONBLOCK));
      // Not by open(2), which refuses it for a pipe; fcntl(2) sets it since Linux 4.5 (pipe(2)).
      const bool packets = packets_.contains(pipe_id);
      FERRY_CHECK(restore_status_flags(filler.get(), O_NONBLOCK | (packets ? kPacketMode : 0)));
      FERRY_CHECK(fill_pipe(filler.get(), contents_[pipe_id], fmt::format("pipe {}", pipe_id), packets));
    }
    return &pipes_.emplace(pipe_id, std::move(made)).first->second;
  }

  // Only the writing end of a pipe that pipe2(2) made with O_DIRECT has the flag.
  void index(const image::Set& set) {
    if (std::exchange(indexed_, true)) {
      return;
    }
    contents_ = index_pipe_contents(set, image::Type::pipes_data);
    for (const auto* file : set.list<pb::FileEntry>({image::Type::files})) {
      if (file->has_pipe() && file->pipe().ferry_packet_mode()) {
        packets_.insert(file->pipe().pipe_id());
      }
    }
  }

  static Result<void> take_inherited(int fd, const std::string& key, Ends& made) {
    FERRY_TRY(const struct stat st, sys::stat_fd(fd, fmt::format("inherited fd {} for {}", fd, key)));
    if (!S_ISFIFO(st.st_mode)) {
      made.other = fd;
      return {};
    }
    // O_RDWR never waits on a pipe (fifo(7)); either end can be had from either.
    const std::string path = fmt::format("/proc/self/fd/{}", fd);
    FERRY_TRY(made.read, sys::open(path, O_RDONLY | O_NONBLOCK).during("inherited fd {} for {}", fd, key));
    FERRY_TRY(made.write, sys::open(path, O_WRONLY | O_NONBLOCK).during("inherited fd {} for {}", fd, key));
    return {};
  }

  std::set<std::uint32_t> seen_;  // checkpoint: pipes whose bytes are saved
  // Restore:
  std::map<std::uint32_t, Ends> pipes_;
  PipeContents contents_;
  std::set<std::uint32_t> packets_;  // pipes with packets
  bool indexed_ = false;
};

}  // namespace

std::unique_ptr<FileKind> make_pipe_kind() { return std::make_unique<PipeKind>(); }

}  // namespace ferry::state
