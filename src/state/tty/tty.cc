#include "state/tty/tty.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "base/log.h"
#include "state/tty/controlling.h"
#include "state/tty/data.h"
#include "state/tty/described.h"
#include "state/tty/device.h"
#include "state/tty/pty.h"
#include "state/tty/reopen.h"
#include "state/tty/termios.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

// Documentation/admin-guide/devices.txt
constexpr unsigned kTtyMajor = 4, kAlternateMajor = 5;
constexpr unsigned kFirstSlaveMajor = 136;
constexpr unsigned kCurrentTtyMinor = 0, kPtmxMinor = 2;
constexpr std::uint32_t kHungUpIndex = 1U << 20;  // and above: terminals without a master, which may share a number
// tty-info.img numbers terminals "index << 1 | master"; the one behind /dev/tty has this index.
constexpr std::uint32_t kCurrentTtyIndex = 1006;

enum class Role { master, slave, current, device };

Role role_of(dev_t rdev) {
  if (rdev == makedev(kAlternateMajor, kPtmxMinor)) {
    return Role::master;
  }
  if (rdev == makedev(kAlternateMajor, kCurrentTtyMinor)) {
    return Role::current;
  }
  return tty::is_slave_device(rdev) ? Role::slave : Role::device;
}

class TtyKind : public FileKind {
 public:
  [[nodiscard]] std::string_view name() const override { return "terminal"; }
  [[nodiscard]] pb::FdType type() const override { return pb::FD_TTY; }

  [[nodiscard]] bool matches(const FdProbe& probe) const override {
    const unsigned device = major(probe.stat.st_rdev);
    return S_ISCHR(probe.stat.st_mode) && (probe.info.flags & O_PATH) == 0 &&
           (device == kTtyMajor || device == kAlternateMajor || tty::is_slave_device(probe.stat.st_rdev) ||
            ::isatty(probe.ours) == 1);
  }

  Result<void> collect(const FdProbe& probe, DumpContext& context, pb::FileEntry& out) override {
    const Role role = role_of(probe.stat.st_rdev);
    pb::TtyFileEntry& entry = *out.mutable_tty();
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    if (unsigned number = 0; role == Role::slave && ::ioctl(probe.ours, TIOCGDEV, &number) != 0 && errno == EIO) {
      return tty::collect_hung_up(probe, kHungUpIndex + static_cast<std::uint32_t>(hung_up_++), context, entry);
    }
    FERRY_TRY(const std::uint32_t path,
              context.files.add_path(context, probe.task, probe.ours, probe.link, probe.status_flags()));
    entry.set_regf_id(path);
    FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
    FERRY_TRY(const std::uint32_t info,
              role == Role::device ? devices_.collect(probe, context) : collect_info(probe, role, context));
    entry.set_tty_info_id(info);
    return {};
  }

  Result<void> finish(DumpContext& context) override {
    for (auto& [id, known] : known_) {
      if (known.role == Role::slave && !known_.contains(id | 1)) {
        FERRY_CHECK(check_orphan(known, context.options));
      } else if (known.role != Role::current) {
        FERRY_CHECK(collect_data(id, known, context));
      }
    }
    return check_controlling(context);
  }

  Result<UniqueFd> open(const pb::FileEntry& file, RestoreContext& context) override {
    const pb::TtyFileEntry& entry = file.tty();
    FERRY_TRY(const pb::TtyInfoEntry* info, tty::info_of(entry.tty_info_id(), context.set));
    const int flags = static_cast<int>(entry.flags());
    if (info->type() == pb::TTYTYPE_CTTY) {
      FERRY_TRY(const pb::TtyInfoEntry* actual, tty::session_terminal(info->sid(), context.set));
      if (tty::is_device(*actual)) {
        FERRY_TRY(const UniqueFd device, tty::open_device_again(*actual, context, O_RDWR));
        return tty::open_current(context.inside, device.get(), flags);
      }
      FERRY_TRY(const Pair* pair, pair_of(*actual, entry, context));
      FERRY_TRY(const UniqueFd slave, open_slave_of(*pair, O_RDWR));
      return tty::open_current(context.inside, slave.get(), flags);
    }
    if (tty::is_device(*info)) {
      return tty::open_device(*info, entry, context);
    }
    if (info->type() != pb::TTYTYPE_PTY || !info->has_pty()) {
      return fail(Kind::unsupported, "terminal {} is of a kind ({}) that ferry cannot restore", info->id(),
                  pb::TtyType_Name(info->type()));
    }
    if ((info->id() & 1) == 0 && !info->has_termios()) {
      return tty::open_hung_up(*info, entry, context);
    }
    FERRY_TRY(Pair * pair, pair_of(*info, entry, context));
    if ((info->id() & 1) == 0) {
      return open_slave_of(*pair, flags);
    }
    if (pair->master_given) {
      // The master end has one description for each open of ptmx, so a second entry means a set that
      // did not come from a kernel.
      return fail(Kind::corrupt, "files.img has two masters of pseudoterminal {}", info->pty().index());
    }
    pair->master_given = true;
    FERRY_CHECK(restore_status_flags(pair->master.get(), entry.flags()));
    return sys::duplicate(pair->master.get());
  }

  Result<void> connect(const pb::FileEntry& file, int fd, RestoreContext& context) override {
    const pb::TtyFileEntry& entry = file.tty();
    FERRY_TRY(const pb::TtyInfoEntry* info, tty::info_of(entry.tty_info_id(), context.set));
    // Exclusive only now that everything that opens it is done; CAP_SYS_ADMIN opens it still.
    if (info->exclusive() && ::ioctl(fd, TIOCEXCL) != 0) {
      return sys_fail(fmt::format("ioctl(terminal {}, TIOCEXCL)", info->id()));
    }
    if ((info->id() & 1) != 0 && info->type() == pb::TTYTYPE_PTY) {
      const int packets = info->packet_mode() ? 1 : 0;
      const int locked = info->locked() ? 1 : 0;
      if (::ioctl(fd, TIOCPKT, &packets) != 0 || ::ioctl(fd, TIOCSPTLCK, &locked) != 0) {
        return sys_fail(fmt::format("ioctl(terminal {}, TIOCPKT or TIOCSPTLCK)", info->id()));
      }
    }
    return restore_fown(fd, entry.fown(), context);
  }

  // The session leader takes its terminal, whether it has it open or not.
  Result<void> attach(RestoreTask& task, RestoreContext& context, tracee::Batch& batch) override {
    pairs_.clear();  // our own masters must not keep a terminal alive that the tree has closed
    if (task.entry->sid() != task.entry->pid()) {
      return {};
    }
    for (const auto* info : context.set.list<pb::TtyInfoEntry>({image::Type::tty_info})) {
      if ((info->type() != pb::TTYTYPE_PTY && !tty::is_device(*info)) || (info->id() & 1) != 0 || info->sid() == 0 ||
          info->sid() != task.entry->pid()) {
        continue;
      }
      FERRY_TRY(UniqueFd slave, slave_of(*info, context));
      if (!slave) {
        continue;
      }
      const auto fd = batch.must("fetching a terminal", SYS_pidfd_getfd, {task.controller_pidfd, slave.get(), 0});
      batch.must("making a terminal the controlling one", SYS_ioctl, {fd, TIOCSCTTY, 0});
      if (info->pgrp() != 0 && group_exists(info->pgrp(), context)) {
        const std::int32_t group = static_cast<std::int32_t>(info->pgrp());
        batch.must("setting the foreground group of a terminal", SYS_ioctl, {fd, TIOCSPGRP, batch.object(group)});
      }
      batch.must("closing a terminal", SYS_close, {fd});
      held_.push_back(std::move(slave));
    }
    return {};
  }
  Result<void> complete(RestoreContext&) override {
    held_.clear();
    return {};
  }

 private:
  // --- checkpoint
  struct Known {
    Role role;
    std::string subject;
    int ours;            // lives as long as the FileTable
    dev_t device, node;  // of the terminal; of the filesystem that its node is on
    std::uint32_t sid;
    std::int32_t tty_nr;  // as /proc/PID/stat gives it
  };

  Result<std::uint32_t> collect_info(const FdProbe& probe, Role role, DumpContext& context) {
    // Behind /dev/tty stands another terminal: TIOCGDEV tells which (ioctl_tty(2), Linux 2.6.33).
    unsigned actual = 0;
    if (::ioctl(probe.ours, TIOCGDEV, &actual) != 0) {
      return sys_fail(fmt::format("ioctl({}, TIOCGDEV)", probe.subject()));
    }
    const auto tty_nr = static_cast<std::int32_t>(actual);
    std::uint32_t index = kCurrentTtyIndex;
    if (role == Role::master && ::ioctl(probe.ours, TIOCGPTN, &index) != 0) {
      return sys_fail(fmt::format("ioctl({}, TIOCGPTN)", probe.subject()));
    }
    if (role == Role::slave) {
      index = tty::slave_index(probe.stat.st_rdev);
    }
    const std::uint32_t id = (index << 1) | (role == Role::master ? 1 : 0);
    const tty::Session session = tty::session_of(context, tty_nr);
    const Known known{role,
                      probe.subject(),
                      probe.ours,
                      probe.stat.st_rdev,
                      probe.stat.st_dev,
                      session.leader,
                      role == Role::master ? 0 : tty_nr};
    const auto [at, fresh] = known_.emplace(id, known);
    if (!fresh) {
      if (at->second.sid != known.sid || (role == Role::slave && at->second.node != known.node)) {
        return fail(Kind::unsupported,
                    "{} and {} are different terminals with one number; ferry cannot tell them apart", probe.subject(),
                    at->second.subject);
      }
      return id;
    }
    pb::TtyInfoEntry info;
    info.set_id(id);
    info.set_type(role == Role::current ? pb::TTYTYPE_CTTY : pb::TTYTYPE_PTY);
    info.set_locked(false);
    info.set_exclusive(flag(probe.ours, TIOCGEXCL));
    info.set_packet_mode(false);
    if (role == Role::master) {
      info.set_locked(flag(probe.ours, TIOCGPTLCK));
      info.set_packet_mode(flag(probe.ours, TIOCGPKT));
    }
    info.set_sid(session.leader);
    info.set_pgrp(session.foreground);
    info.set_rdev(tty::encode_rdev(probe.stat.st_rdev));
    info.set_dev(tty::encode_rdev(probe.stat.st_dev));
    info.set_uid(probe.stat.st_uid);
    info.set_gid(probe.stat.st_gid);
    if (role != Role::current) {
      info.mutable_pty()->set_index(index);
      FERRY_CHECK(tty::collect_attributes(probe.ours, probe.subject(), info));
    }
    context.set.add({image::Type::tty_info}, std::move(info));
    return id;
  }

  static bool flag(int fd, unsigned long request) {
    int value = 0;
    return ::ioctl(fd, request, &value) == 0 && value != 0;
  }

  static Result<void> check_orphan(const Known& known, const DumpOptions& options) {
    const std::string key = fmt::format("tty[{:x}:{:x}]", tty::encode_rdev(known.device), tty::encode_rdev(known.node));
    for (const std::string& external : options.external) {
      if (external == key) {
        return {};
      }
    }
    if (!options.orphan_pts_master && !options.shell_job) {
      return fail(Kind::unsupported,
                  "{}: the other side of this terminal is outside of the tree; give --shell-job if it was started "
                  "from a shell, or --external {}",
                  known.subject, key);
    }
    int unread = 0;
    if (::ioctl(known.ours, FIONREAD, &unread) == 0 && unread > 0) {
      log::warning("{}: {} bytes that were typed and not read yet are left out", known.subject, unread);
    }
    return {};
  }

  static Result<void> collect_data(std::uint32_t id, const Known& known, DumpContext& context) {
    const bool master = known.role == Role::master;
    FERRY_TRY(std::string bytes, tty::take_data(known.ours, master, known.subject));
    if (bytes.empty()) {
      return {};
    }
    FERRY_TRY(const UniqueFd other, other_side(known, id, context));
    FERRY_CHECK(tty::write_unchanged(other.get(), known.ours, known.ours, bytes, known.subject));
    pb::TtyDataEntry data;
    data.set_tty_id(id);
    data.set_data(std::move(bytes));
    context.set.add({image::Type::tty_data}, std::move(data));
    return {};
  }

  // A descriptor of the other side of a pair of the tree, to write to.
  static Result<UniqueFd> other_side(const Known& known, std::uint32_t id, DumpContext& context) {
    if (known.role == Role::master) {
      return tty::open_slave(known.ours, O_RDWR);
    }
    for (const image::Entry& e : context.set.entries({image::Type::files})) {
      const auto& file = static_cast<const pb::FileEntry&>(*e.message);
      if (file.has_tty() && file.tty().tty_info_id() == (id | 1)) {
        return tty::duplicate_of(context, file.id());
      }
    }
    return fail(Kind::os, "{}: its master is not in the tree", known.subject);
  }

  // A session whose terminal nobody in the tree has open gets it by way of the master.
  Result<void> check_controlling(DumpContext& context) const {
    for (const auto& task : context.tasks) {
      if (task->zombie || task->stat.tty_nr == 0 || task->ns_sid.value == 0 || task->ns_sid != task->ns_pid) {
        continue;
      }
      const Known* master = nullptr;
      std::uint32_t master_id = 0;
      bool open = devices_.has(task->stat.tty_nr);
      for (const auto& [id, known] : known_) {
        open |= known.role == Role::slave && known.tty_nr == task->stat.tty_nr;
        if (known.role == Role::master && slave_number(id >> 1) == task->stat.tty_nr) {
          master = &known;
          master_id = id;
        }
      }
      if (open) {
        continue;
      }
      if (master == nullptr) {
        return fail(Kind::unsupported,
                    "pid {} leads a session whose controlling terminal (device {:#x}) nobody in the tree has open; "
                    "ferry cannot give it back",
                    task->pid, task->stat.tty_nr);
      }
      FERRY_CHECK(tty::add_session(master->ours, master_id >> 1, task->stat.tty_nr, master->subject, context));
    }
    return {};
  }

  // As /proc/PID/stat gives it (proc(5), tty_nr).
  static std::int32_t slave_number(std::uint32_t index) {
    return static_cast<std::int32_t>((kFirstSlaveMajor + index / 256) << 8 | index % 256);
  }

  // --- restore
  struct Pair {
    UniqueFd master;    // none if the slave is somebody else's terminal
    UniqueFd external;  // that terminal
    bool master_given = false;
  };

  // A descriptor of a terminal of the set: one that the tree has, or one by way of its master.  None if it was
  // somebody else's and is not open in the tree.
  static Result<UniqueFd> slave_of(const pb::TtyInfoEntry& info, RestoreContext& context) {
    const pb::FileEntry* master = nullptr;
    for (const auto* file : context.set.list<pb::FileEntry>({image::Type::files})) {
      if (file->has_tty() && file->tty().tty_info_id() == info.id()) {
        FERRY_TRY(const int ours, context.files.get(file->id()));
        return sys::duplicate(ours);
      }
      if (file->has_tty() && file->tty().tty_info_id() == (info.id() | 1)) {
        master = file;
      }
    }
    if (master == nullptr) {
      return UniqueFd();
    }
    FERRY_TRY(const int ours, context.files.get(master->id()));
    return tty::open_slave(ours, O_RDWR);
  }

  static bool group_exists(std::uint32_t group, const RestoreContext& context) {
    for (const auto& task : context.tasks) {
      if (task->entry->pgid() == group) {
        return true;
      }
    }
    return false;
  }

  static Result<UniqueFd> open_slave_of(const Pair& pair, int flags) {
    if (pair.master) {
      return tty::open_slave(pair.master.get(), flags);
    }
    return sys::open(fmt::format("/proc/self/fd/{}", pair.external.get()), flags | O_NOCTTY);
  }

  Result<Pair*> pair_of(const pb::TtyInfoEntry& info, const pb::TtyFileEntry& entry, RestoreContext& context) {
    const std::uint32_t index = info.pty().index();
    if (const auto known = pairs_.find(index); known != pairs_.end()) {
      return &known->second;
    }
    const auto has_master = tty::info_of((index << 1) | 1, context.set).has_value();
    Pair pair;
    if (!has_master) {
      FERRY_TRY(pair.external, tty::external_terminal(info, context.options));
    }
    if (!pair.external) {
      FERRY_TRY(UniqueFd prepared, tty::prepared_master(index, context.options));
      const bool handed_out = static_cast<bool>(prepared);
      FERRY_TRY(pair.master, tty::make_master(info, index, entry, std::move(prepared), context));
      if (!has_master && !handed_out) {
        log::info("terminal {}: handing out its master", index);
        FERRY_CHECK(context.listener.on({Stage::orphan_pts_master, {}, pair.master.get()}));
      }
    }
    return &pairs_.emplace(index, std::move(pair)).first->second;
  }

  std::map<std::uint32_t, Known> known_;  // checkpoint, by the id in tty-info.img
  tty::Devices devices_;                  // checkpoint
  int hung_up_ = 0;                       // checkpoint
  std::map<std::uint32_t, Pair> pairs_;   // restore, by index
  std::vector<UniqueFd> held_;            // restore: until the batch that fetches them has run
};

}  // namespace

std::string prepared_master_key(std::uint32_t index) { return fmt::format("ferry-pty-master[{}]", index); }

std::unique_ptr<FileKind> make_tty_kind() { return std::make_unique<TtyKind>(); }

}  // namespace ferry::state
