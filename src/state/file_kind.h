// The seam between descriptors and their kinds.
//
// One kind of file description (a pipe, an eventfd, a TCP socket…) is one FileKind in a folder of its
// own under state/, holding both directions; make_file_kinds() lists them.  A kind object lives for
// one checkpoint or one restore and may keep what several of its files share (the two ends of a
// pipe).
#pragma once

#include <sys/stat.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/unique_fd.h"
#include "image/proto/files.pb.h"
#include "image/proto/fown.pb.h"
#include "state/dump.h"
#include "state/restore.h"
#include "sys/proc.h"

namespace ferry::state {

// One descriptor of a stopped task, looked at from outside.
struct FdProbe {
  DumpTask& task;
  int fd;            // its number in the task
  int ours;          // a duplicate of the same description in our table; -1 for O_PATH-like refusals
  struct stat stat;  // of the description
  sys::FdInfo info;  // /proc/PID/fdinfo/FD
  std::string link;  // /proc/PID/fd/FD, with " (deleted)" where the kernel says so
  [[nodiscard]] std::uint32_t status_flags() const { return info.flags & ~02000000U; }  // without O_CLOEXEC
  [[nodiscard]] std::string subject() const { return fmt::format("pid {} fd {} ({})", task.pid, fd, link); }
};

class FileKind {
 public:
  FileKind() = default;
  FileKind(const FileKind&) = delete;
  FileKind& operator=(const FileKind&) = delete;
  virtual ~FileKind() = default;

  [[nodiscard]] virtual std::string_view name() const = 0;
  [[nodiscard]] virtual pb::FdType type() const = 0;

  // --- checkpoint
  // Before the freeze, for every descriptor: what takes long to find out and can be checked quickly later.
  // `proc`: /proc/PID; `link`: of the descriptor.
  virtual void prepare(int /*proc*/, int /*fd*/, const std::string& /*link*/) {}
  [[nodiscard]] virtual bool matches(const FdProbe& probe) const = 0;
  // Fills the kind's sub-message of `out` (its type and id are set already, the sub-message's own id
  // is the kind's to set).  Called once for each description, with one of the descriptors that refer
  // to it.  What cannot be carried is refused here: Kind::unsupported with probe.subject().
  virtual Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) = 0;
  // After all descriptions of all tasks were collected: what lies between them (queues, peers).
  virtual Result<void> finish(DumpContext&) { return {}; }
  // The images are complete, and the tree is about to be killed: what would let others hear of it is made
  // silent.
  virtual Result<void> before_end(DumpContext&) { return {}; }
  // The tree is about to go on.
  virtual Result<void> before_going_on(DumpContext&) { return {}; }

  // --- restore
  // Before any description is opened: what has to be there first, whether a description refers to it or not.
  virtual Result<void> begin(RestoreContext&) { return {}; }
  // Makes the description, in our table.  Other files are had by context.files.get(id).
  virtual Result<UniqueFd> open(const pb::FileEntry& entry, RestoreContext& context) = 0;
  // When all descriptions of the set are open and all tasks exist, but no task has its descriptors yet:
  // queues, connections.  Data that a pipe or socket holds goes in here.
  virtual Result<void> connect(const pb::FileEntry&, int /*fd*/, RestoreContext&) { return {}; }
  // When the task has its descriptors: calls that only a task itself can make (epoll_ctl with its own
  // numbers, TIOCSCTTY, locks).  Called once for each descriptor.
  virtual Result<void> settle(const pb::FileEntry&, const pb::FdinfoEntry&, RestoreTask&, RestoreContext&,
                              tracee::Batch&) {
    return {};
  }
  // The network is open, and the tree is about to run: what only then can be set going.
  virtual Result<void> resume(const pb::FileEntry&, int /*fd*/, RestoreContext&) { return {}; }
  // When the task has its descriptors, once for each task and before its descriptors settle.  It still has
  // `controller_pidfd` and so can fetch what it needs for a moment.
  virtual Result<void> attach(RestoreTask&, RestoreContext&, tracee::Batch&) { return {}; }
  // When all tasks have all their descriptors, and before any of them runs.
  virtual Result<void> complete(RestoreContext&) { return {}; }
};

std::vector<std::unique_ptr<FileKind>> make_file_kinds();

// What every file description has beside its kind: owner and signal of asynchronous I/O (fcntl(2),
// F_GETOWN_EX, F_GETSIG), and status flags.
Result<void> collect_fown(const FdProbe& probe, const DumpContext& context, pb::FownEntry& out);
Result<void> restore_fown(int fd, const pb::FownEntry& entry, const RestoreContext& context);
// F_SETFL for what open or socket cannot be given at once (O_NONBLOCK, O_APPEND…).  Not O_ASYNC: it is the
// task's to set, because the kernel tells the number of the descriptor that it was set by (fcntl(2), F_SETSIG).
Result<void> restore_status_flags(int fd, std::uint32_t flags);
// What F_GETFL said of the description; 0 where an entry does not have it.
std::uint32_t status_flags_of(const pb::FileEntry& entry, const OpenFiles& files);

// The descriptions of a checkpoint: numbers them, finds out which descriptors share one (kcmp(2)).
class FileTable {
 public:
  FileTable();
  ~FileTable();
  // Before the freeze: `pid` and its descendants.
  void prepare(HostPid pid);
  // Every descriptor of every task; fills fdinfo-N and files.
  Result<void> collect_all(DumpContext& context);
  // Tells all kinds.
  Result<void> before_end(DumpContext& context);
  Result<void> before_going_on(DumpContext& context);
  // A REG entry for a file that is not a descriptor: a mapping, exe, cwd, root.  `ours`: an O_PATH or
  // other descriptor of the file in our table; `link` its path as /proc shows it.
  Result<std::uint32_t> add_path(DumpContext& context, DumpTask& task, int ours, const std::string& link,
                                 std::uint32_t flags);
  // Fills a REG entry (names.h).
  Result<void> describe(DumpContext& context, DumpTask& task, int ours, const struct stat& stat,
                        const std::string& link, const std::string& subject, pb::RegFileEntry& out);
  // The images are complete: helper names of --link-remap stay.
  void keep_links();
  // An id for a further entry of files.img that a kind needs (a FIFO's path).
  std::uint32_t next_id() { return ++last_id_; }
  // The id of the description behind a descriptor of a task; 0 if it is not in the tree.
  [[nodiscard]] std::uint32_t id_of(const DumpTask& task, int fd) const;
  // Our duplicate of a collected description.
  [[nodiscard]] int ours(std::uint32_t id) const;
  // The collected descriptions of an inode: id and our duplicate.
  [[nodiscard]] std::vector<std::pair<std::uint32_t, int>> of_inode(dev_t dev, ino_t ino) const;
  // A description that was found elsewhere than in a descriptor table (in flight in a socket): compares
  // with all collected and collects it if it is new.
  Result<std::uint32_t> add_description(DumpContext& context, DumpTask& task, int ours);

 private:
  struct State;
  std::unique_ptr<State> state_;
  std::uint32_t last_id_ = 0;
};

// The descriptions of a restore, opened on first demand.
class OpenFiles {
 public:
  OpenFiles();
  ~OpenFiles();
  // Reads files.img.
  Result<void> prepare(RestoreContext& context);
  // The description with that id, opened if it is not yet.  Stays owned here.
  Result<int> get(std::uint32_t id);
  [[nodiscard]] const pb::FileEntry* entry(std::uint32_t id) const;
  // Opens everything that a task refers to, then connects.
  Result<void> open_all(RestoreContext& context);
  // Puts the descriptors of one task into its table (its skeleton fetches them with pidfd_getfd(2)) and
  // settles them.
  Result<void> install(RestoreContext& context, RestoreTask& task);
  // Tells the kind of every description.
  Result<void> resume(RestoreContext& context);
  // Once all tasks have their descriptors.
  Result<void> complete(RestoreContext& context);
  // Opens the file of a REG entry, by its path or in whatever way it was kept.
  Result<UniqueFd> open_path(const pb::RegFileEntry& entry, int flags);
  // Opens the file of a REG entry anew with other flags, for a mapping.
  Result<UniqueFd> reopen(std::uint32_t id, int flags);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ferry::state
