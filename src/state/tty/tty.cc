#include "state/tty/tty.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <set>

#include "base/log.h"
#include "state/tty/controlling.h"
#include "state/tty/pty.h"
#include "state/tty/termios.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

// Documentation/admin-guide/devices.txt
constexpr unsigned kTtyMajor = 4, kAlternateMajor = 5;
constexpr unsigned kCurrentTtyMinor = 0, kPtmxMinor = 2;
// tty-info.img numbers terminals "index << 1 | master"; the one behind /dev/tty has this index.
constexpr std::uint32_t kCurrentTtyIndex = 1006;

std::uint32_t encode_rdev(dev_t dev) {  // as CRIU writes it: the low 32 bits of glibc's dev_t
  return static_cast<std::uint32_t>(dev);
}

enum class Role { master, slave, current, other };

Role role_of(dev_t rdev) {
  if (rdev == makedev(kAlternateMajor, kPtmxMinor)) {
    return Role::master;
  }
  if (rdev == makedev(kAlternateMajor, kCurrentTtyMinor)) {
    return Role::current;
  }
  return tty::is_slave_device(rdev) ? Role::slave : Role::other;
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
    if (role == Role::other) {
      return fail(Kind::unsupported, "{}: a terminal that is a device of this host cannot be carried over",
                  probe.subject());
    }
    pb::TtyFileEntry& entry = *out.mutable_tty();
    entry.set_id(out.id());
    entry.set_flags(probe.status_flags());
    FERRY_TRY(const std::uint32_t path,
              context.files.add_path(context, probe.task, probe.ours, probe.link, probe.status_flags()));
    entry.set_regf_id(path);
    FERRY_CHECK(collect_fown(probe, context, *entry.mutable_fown()));
    FERRY_TRY(const std::uint32_t info, collect_info(probe, role, context));
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
    FERRY_TRY(const pb::TtyInfoEntry* info, info_of(entry.tty_info_id(), context.set));
    const int flags = static_cast<int>(entry.flags());
    if (info->type() == pb::TTYTYPE_CTTY) {
      FERRY_TRY(const pb::TtyInfoEntry* actual, session_terminal(info->sid(), context.set));
      FERRY_TRY(const Pair* pair, pair_of(*actual, entry, context));
      FERRY_TRY(const UniqueFd slave, open_slave_of(*pair, O_RDWR));
      return tty::open_current(context.inside, slave.get(), flags);
    }
    if (info->type() != pb::TTYTYPE_PTY || !info->has_pty()) {
      return fail(Kind::unsupported, "terminal {} is of a kind ({}) that ferry cannot restore", info->id(),
                  pb::TtyType_Name(info->type()));
    }
    FERRY_TRY(Pair* pair, pair_of(*info, entry, context));
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
    FERRY_TRY(const pb::TtyInfoEntry* info, info_of(entry.tty_info_id(), context.set));
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

  Result<void> settle(const pb::FileEntry& file, const pb::FdinfoEntry& descriptor, RestoreTask& task,
                      RestoreContext& context, tracee::Batch& batch) override {
    pairs_.clear();  // our own masters must not keep a terminal alive that the tree has closed
    FERRY_TRY(const pb::TtyInfoEntry* info, info_of(file.tty().tty_info_id(), context.set));
    const bool slave = info->type() == pb::TTYTYPE_PTY && (info->id() & 1) == 0;
    const bool leader = info->sid() != 0 && info->sid() == task.entry->pid() && task.entry->sid() == task.entry->pid();
    if (!slave || !leader || !sessions_.insert(info->id()).second) {
      return {};
    }
    batch.must("making a terminal the controlling one", SYS_ioctl, {descriptor.fd(), TIOCSCTTY, 0});
    if (info->pgrp() != 0 && group_exists(info->pgrp(), context)) {
      const std::int32_t group = static_cast<std::int32_t>(info->pgrp());
      batch.must("setting the foreground group of a terminal", SYS_ioctl,
                 {descriptor.fd(), TIOCSPGRP, batch.object(group)});
    }
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
    const Known known{role,          probe.subject(), probe.ours, probe.stat.st_rdev, probe.stat.st_dev,
                      session.leader, role == Role::master ? 0 : tty_nr};
    const auto [at, fresh] = known_.emplace(id, known);
    if (!fresh) {
      if (at->second.sid != known.sid || (role == Role::slave && at->second.node != known.node)) {
        return fail(Kind::unsupported, "{} and {} are different terminals with one number; ferry cannot tell them apart",
                    probe.subject(), at->second.subject);
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
    info.set_rdev(encode_rdev(probe.stat.st_rdev));
    info.set_dev(encode_rdev(probe.stat.st_dev));
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
    const std::string key = fmt::format("tty[{:x}:{:x}]", encode_rdev(known.device), encode_rdev(known.node));
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

  // Bytes under way in a pair.  A terminal has no way to look without taking, so what is taken is put
  // back from the other side.
  static Result<void> collect_data(std::uint32_t id, const Known& known, DumpContext& context) {
    int unread = 0;
    if (::ioctl(known.ours, FIONREAD, &unread) != 0 || unread <= 0) {
      return {};
    }
    const bool master = known.role == Role::master;
    if (flag(known.ours, TIOCGPKT) && master) {
      return fail(Kind::unsupported, "{}: a terminal in packet mode has unread output; try again", known.subject);
    }
    FERRY_TRY(const UniqueFd other, other_side(known, id, context));
    FERRY_TRY(tty::Quiet quiet, tty::Quiet::make(known.ours, known.subject));
    FERRY_TRY(std::string bytes, tty::drain(known.ours, known.subject));
    FERRY_CHECK(sys::write_all(other.get(), bytes.data(), bytes.size(), known.subject));
    FERRY_CHECK(quiet.end());
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

  // A session whose terminal nobody in the tree has open would come back without it.
  Result<void> check_controlling(const DumpContext& context) const {
    for (const auto& task : context.tasks) {
      if (task->zombie || task->stat.tty_nr == 0 || task->ns_sid.value == 0 || task->ns_sid != task->ns_pid) {
        continue;
      }
      bool open = false;
      for (const auto& [id, known] : known_) {
        open |= known.tty_nr == task->stat.tty_nr && known.role == Role::slave &&
                tty::has_terminal(context, *task, id);
      }
      if (!open) {
        return fail(Kind::unsupported,
                    "pid {} leads a session whose controlling terminal (device {:#x}) it does not have open; "
                    "ferry cannot give it back",
                    task->pid, task->stat.tty_nr);
      }
    }
    return {};
  }

  // --- restore
  struct Pair {
    UniqueFd master;    // none if the slave is somebody else's terminal
    UniqueFd external;  // that terminal
    bool master_given = false;
  };

  static Result<const pb::TtyInfoEntry*> info_of(std::uint32_t id, const image::Set& set) {
    for (const auto* info : set.list<pb::TtyInfoEntry>({image::Type::tty_info})) {
      if (info->id() == id) {
        return info;
      }
    }
    return fail(Kind::corrupt, "tty-info.img has no terminal {}", id);
  }

  static Result<const pb::TtyInfoEntry*> session_terminal(std::uint32_t sid, const image::Set& set) {
    for (const auto* info : set.list<pb::TtyInfoEntry>({image::Type::tty_info})) {
      if (info->type() == pb::TTYTYPE_PTY && (info->id() & 1) == 0 && info->sid() == sid) {
        return info;
      }
    }
    return fail(Kind::corrupt, "/dev/tty is open, but tty-info.img has no terminal of session {}", sid);
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
    const auto has_master = info_of((index << 1) | 1, context.set).has_value();
    Pair pair;
    if (!has_master) {
      FERRY_TRY(pair.external, external_terminal(info, context.options));
    }
    if (!pair.external) {
      FERRY_TRY(UniqueFd prepared, prepared_master(index, context.options));
      const bool handed_out = static_cast<bool>(prepared);
      FERRY_TRY(pair.master, make_master(info, index, entry, std::move(prepared), context));
      if (!has_master && !handed_out) {
        log::info("terminal {}: handing out its master", index);
        FERRY_CHECK(context.listener.on({Stage::orphan_pts_master, {}, pair.master.get()}));
      }
    }
    return &pairs_.emplace(index, std::move(pair)).first->second;
  }

  // Whose terminal takes the place of one whose master was outside of the tree.
  static Result<UniqueFd> external_terminal(const pb::TtyInfoEntry& info, const RestoreOptions& options) {
    const std::string key = fmt::format("tty[{:x}:{:x}]", info.rdev(), info.dev());
    for (const InheritFd& inherited : options.inherit_fds) {
      if (inherited.key == key) {
        return sys::duplicate(inherited.fd);
      }
    }
    if (options.orphan_pts_master) {
      return UniqueFd();
    }
    if (options.shell_job) {
      for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
        if (::isatty(fd) == 1) {
          return sys::duplicate(fd);
        }
      }
      return fail(Kind::invalid, "--shell-job: standard input is not a terminal that terminal {} could become", key);
    }
    return fail(Kind::unsupported,
                "terminal {}: its other side was outside of the tree; give --shell-job or --inherit-fd fd[N]:{}",
                info.pty().index(), key);
  }

  static Result<UniqueFd> prepared_master(std::uint32_t index, const RestoreOptions& options) {
    for (const InheritFd& inherited : options.inherit_fds) {
      if (inherited.key == prepared_master_key(index)) {
        return sys::duplicate(inherited.fd);
      }
    }
    return UniqueFd();
  }

  static Result<UniqueFd> make_master(const pb::TtyInfoEntry& info, std::uint32_t index, const pb::TtyFileEntry& entry,
                                      UniqueFd prepared, RestoreContext& context) {
    const pb::FileEntry* path = context.files.entry(entry.regf_id());
    if (path == nullptr || !path->has_reg()) {
      return fail(Kind::corrupt, "terminal {} has no path", entry.id());
    }
    // "/dev/pts/0" and "/dev/pts/ptmx" are in one devpts; /dev/ptmx leads to the one of its mount namespace.
    std::string ptmx = path->reg().name();
    if (!ptmx.ends_with("/ptmx")) {
      const std::string folder = ptmx.substr(0, ptmx.rfind('/'));
      ptmx = folder.ends_with("/pts") ? folder + "/ptmx" : "/dev/pts/ptmx";
    }
    UniqueFd master = std::move(prepared);
    if (!master) {
      FERRY_TRY(master, context.inside.get<UniqueFd>([&] { return tty::open_master(ptmx, index); }));
    }
    const int unlocked = 0;
    if (::ioctl(master.get(), TIOCSPTLCK, &unlocked) != 0) {
      return sys_fail(fmt::format("ioctl({}, TIOCSPTLCK)", ptmx));
    }
    FERRY_TRY(const UniqueFd slave, tty::open_slave(master.get(), O_RDWR));
    FERRY_CHECK(tty::restore_modes(slave.get(), info));
    FERRY_CHECK(tty::restore_window_size(master.get(), info));
    if (const auto owner = info_of(index << 1, context.set); owner.has_value() && (*owner)->has_uid()) {
      if (::fchown(slave.get(), (*owner)->uid(), (*owner)->gid()) != 0) {
        return sys_fail(fmt::format("fchown(pseudoterminal {}, {}, {})", index, (*owner)->uid(), (*owner)->gid()));
      }
    }
    FERRY_CHECK(restore_data(index, master.get(), slave.get(), context.set));
    return master;
  }

  static Result<void> restore_data(std::uint32_t index, int master, int slave, const image::Set& set) {
    for (const auto* data : set.list<pb::TtyDataEntry>({image::Type::tty_data})) {
      if (data->tty_id() >> 1 != index) {
        continue;
      }
      // The image says which side would have read it.
      const int writer = (data->tty_id() & 1) != 0 ? slave : master;
      const std::string subject = fmt::format("pseudoterminal {}", index);
      FERRY_TRY(tty::Quiet quiet, tty::Quiet::make(slave, subject));
      FERRY_CHECK(sys::write_all(writer, data->data().data(), data->data().size(), subject));
      FERRY_CHECK(quiet.end());
    }
    return {};
  }

  std::map<std::uint32_t, Known> known_;  // checkpoint, by the id in tty-info.img
  std::map<std::uint32_t, Pair> pairs_;   // restore, by index
  std::set<std::uint32_t> sessions_;      // restore: terminals that have got their session
};

}  // namespace

std::string prepared_master_key(std::uint32_t index) { return fmt::format("ferry-pty-master[{}]", index); }

std::unique_ptr<FileKind> make_tty_kind() { return std::make_unique<TtyKind>(); }

}  // namespace ferry::state
