#include "state/tty/reopen.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "state/tty/data.h"
#include "state/tty/pty.h"
#include "state/tty/termios.h"
#include "state/tty/tty.h"
#include "state/userns/userns.h"
#include "sys/file.h"

namespace ferry::state::tty {
namespace {

Result<void> restore_data(std::uint32_t index, int master, int slave, const image::Set& set) {
  for (const auto* data : set.list<pb::TtyDataEntry>({image::Type::tty_data})) {
    if (data->tty_id() >> 1 != index) {
      continue;
    }
    // The image says which side would have read it.
    const int writer = (data->tty_id() & 1) != 0 ? slave : master;
    const std::string subject = fmt::format("pseudoterminal {}", index);
    const int reader = writer == slave ? master : slave;
    FERRY_CHECK(write_unchanged(writer, reader, slave, data->data(), subject));
  }
  return {};
}

}  // namespace

Result<const pb::TtyInfoEntry*> info_of(std::uint32_t id, const image::Set& set) {
  for (const auto* info : set.list<pb::TtyInfoEntry>({image::Type::tty_info})) {
    if (info->id() == id) {
      return info;
    }
  }
  return fail(Kind::corrupt, "tty-info.img has no terminal {}", id);
}

Result<const pb::TtyInfoEntry*> session_terminal(std::uint32_t sid, const image::Set& set) {
  for (const auto* info : set.list<pb::TtyInfoEntry>({image::Type::tty_info})) {
    if (info->type() != pb::TTYTYPE_CTTY && (info->id() & 1) == 0 && info->sid() == sid) {
      return info;
    }
  }
  return fail(Kind::corrupt, "/dev/tty is open, but tty-info.img has no terminal of session {}", sid);
}

Result<UniqueFd> open_hung_up(const pb::TtyInfoEntry& info, const pb::TtyFileEntry& entry, RestoreContext& context) {
  FERRY_TRY(const std::string ptmx, ptmx_of(entry, context));
  FERRY_TRY(const UniqueFd master, context.inside.get<UniqueFd>([&]() -> Result<UniqueFd> {
    auto same = open_master(ptmx, info.pty().index());
    return same.has_value() ? std::move(same) : sys::open(ptmx, O_RDWR | O_NOCTTY);
  }));
  const int unlocked = 0;
  if (::ioctl(master.get(), TIOCSPTLCK, &unlocked) != 0) {
    return sys_fail(fmt::format("ioctl({}, TIOCSPTLCK)", ptmx));
  }
  return open_slave(master.get(), static_cast<int>(entry.flags()));
}

Result<std::string> ptmx_of(const pb::TtyFileEntry& entry, RestoreContext& context) {
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
  return ptmx;
}

Result<UniqueFd> external_terminal(const pb::TtyInfoEntry& info, const RestoreOptions& options) {
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

Result<UniqueFd> prepared_master(std::uint32_t index, const RestoreOptions& options) {
  for (const InheritFd& inherited : options.inherit_fds) {
    if (inherited.key == prepared_master_key(index)) {
      return sys::duplicate(inherited.fd);
    }
  }
  return UniqueFd();
}

Result<UniqueFd> make_master(const pb::TtyInfoEntry& info, std::uint32_t index, const pb::TtyFileEntry& entry,
                             UniqueFd prepared, RestoreContext& context) {
  FERRY_TRY(const std::string ptmx, ptmx_of(entry, context));
  UniqueFd master = std::move(prepared);
  if (!master) {
    FERRY_TRY(master, context.inside.get<UniqueFd>([&] { return open_master(ptmx, index); }));
  }
  const int unlocked = 0;
  if (::ioctl(master.get(), TIOCSPTLCK, &unlocked) != 0) {
    return sys_fail(fmt::format("ioctl({}, TIOCSPTLCK)", ptmx));
  }
  FERRY_TRY(const UniqueFd slave, open_slave(master.get(), O_RDWR));
  FERRY_CHECK(restore_modes(slave.get(), info));
  FERRY_CHECK(restore_window_size(master.get(), info));
  if (const auto owner = info_of(index << 1, context.set); owner.has_value() && (*owner)->has_uid()) {
    if (::fchown(slave.get(), (*owner)->uid(), (*owner)->gid()) != 0) {
      return sys_fail(fmt::format("fchown(pseudoterminal {}, {}, {})", index, (*owner)->uid(), (*owner)->gid()));
    }
  } else if (const pb::UsernsEntry* maps = userns::maps_of(context.set, *context.root().ids); maps != nullptr) {
    // Made by us, who are nobody there.  devpts gives a terminal to whoever opens /dev/ptmx, and its group by an
    // option of the mount.
    const auto uid = userns::outside(maps->uid_map(), 0);
    if (uid && ::fchown(slave.get(), *uid, static_cast<gid_t>(-1)) != 0) {
      return sys_fail(fmt::format("fchown(pseudoterminal {}, {})", index, *uid));
    }
  }
  FERRY_CHECK(restore_data(index, master.get(), slave.get(), context.set));
  return master;
}

}  // namespace ferry::state::tty
