#include "state/tty/device.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>

#include <algorithm>

#include "state/tty/controlling.h"
#include "state/tty/described.h"
#include "state/tty/termios.h"
#include "sys/file.h"

namespace ferry::state::tty {
namespace {

// Documentation/admin-guide/devices.txt
constexpr unsigned kTtyMajor = 4, kAlternateMajor = 5, kConsoleMinor = 1;
constexpr unsigned kFirstSerialMinor = 64;

// What tty-info.img has in place of the number of a pseudoterminal.
constexpr std::uint32_t kConsoleIndex = 1002, kVirtualIndex = 1004, kSerialIndex = 1010, kFurtherIndex = 1012;

pb::TtyType type_of(dev_t device) {
  if (major(device) == kAlternateMajor && minor(device) == kConsoleMinor) {
    return pb::TTYTYPE_CONSOLE;
  }
  return major(device) == kTtyMajor && minor(device) < kFirstSerialMinor ? pb::TTYTYPE_VT : pb::TTYTYPE_SERIAL;
}

std::string key_of(std::uint32_t device, std::uint32_t node) { return fmt::format("tty[{:x}:{:x}]", device, node); }

bool is_external(const DumpOptions& options, const std::string& key) {
  return std::find(options.external.begin(), options.external.end(), key) != options.external.end();
}

}  // namespace

std::uint32_t Devices::new_index(pb::TtyType type) {
  std::uint32_t index = kFurtherIndex;
  if (type == pb::TTYTYPE_CONSOLE) {
    index = kConsoleIndex;
  } else if (type == pb::TTYTYPE_VT) {
    index = kVirtualIndex;
  } else if (type == pb::TTYTYPE_SERIAL) {
    index = kSerialIndex;
  }
  if (indices_.contains(index)) {
    index = kFurtherIndex;
    while (indices_.contains(index)) {
      ++index;
    }
  }
  indices_.insert(index);
  return index;
}

Result<std::uint32_t> Devices::collect(const FdProbe& probe, DumpContext& context) {
  std::uint32_t& id = ids_[probe.stat.st_rdev];
  if (id != 0) {
    return id;
  }
  pb::TtyInfoEntry info;
  info.set_rdev(encode_rdev(probe.stat.st_rdev));
  info.set_dev(encode_rdev(probe.stat.st_dev));
  const bool external = is_external(context.options, key_of(info.rdev(), info.dev()));
  info.set_type(external ? pb::TTYTYPE_EXT_TTY : type_of(probe.stat.st_rdev));
  id = new_index(info.type()) << 1;
  info.set_id(id);
  info.set_locked(false);
  info.set_packet_mode(false);
  int exclusive = 0;
  info.set_exclusive(::ioctl(probe.ours, TIOCGEXCL, &exclusive) == 0 && exclusive != 0);
  // The console is another terminal, which TIOCGDEV tells (ioctl_tty(2)).
  unsigned number = 0;
  Session session;
  if (::ioctl(probe.ours, TIOCGDEV, &number) == 0) {
    numbers_.insert(static_cast<std::int32_t>(number));
    session = session_of(context, static_cast<std::int32_t>(number));
  }
  info.set_sid(session.leader);
  info.set_pgrp(session.foreground);
  info.set_uid(probe.stat.st_uid);
  info.set_gid(probe.stat.st_gid);
  if (!external) {
    FERRY_CHECK(collect_attributes(probe.ours, probe.subject(), info));
  }
  context.set.add({image::Type::tty_info}, std::move(info));
  return id;
}

bool is_device(const pb::TtyInfoEntry& info) {
  return info.type() == pb::TTYTYPE_VT || info.type() == pb::TTYTYPE_SERIAL || info.type() == pb::TTYTYPE_CONSOLE ||
         info.type() == pb::TTYTYPE_EXT_TTY;
}

Result<UniqueFd> open_device(const pb::TtyInfoEntry& info, const pb::TtyFileEntry& entry, RestoreContext& context) {
  const std::string key = key_of(info.rdev(), info.dev());
  for (const InheritFd& inherited : context.options.inherit_fds) {
    if (inherited.key == key) {
      return sys::duplicate(inherited.fd);
    }
  }
  if (info.type() == pb::TTYTYPE_EXT_TTY) {
    return fail(Kind::invalid, "terminal {} was declared external at the checkpoint; give --inherit-fd fd[N]:{}", key,
                key);
  }
  const pb::FileEntry* path = context.files.entry(entry.regf_id());
  if (path == nullptr || !path->has_reg()) {
    return fail(Kind::corrupt, "terminal {} has no path", entry.id());
  }
  FERRY_TRY(UniqueFd fd, context.files.open_path(path->reg(), static_cast<int>(entry.flags()) | O_NOCTTY));
  if (info.has_termios()) {
    FERRY_CHECK(restore_modes(fd.get(), info));
    FERRY_CHECK(restore_window_size(fd.get(), info));
  }
  return fd;
}

Result<UniqueFd> open_device_again(const pb::TtyInfoEntry& info, RestoreContext& context, int flags) {
  for (const auto* file : context.set.list<pb::FileEntry>({image::Type::files})) {
    if (file->has_tty() && file->tty().tty_info_id() == info.id()) {
      FERRY_TRY(const UniqueFd own, open_device(info, file->tty(), context));
      return sys::open(fmt::format("/proc/self/fd/{}", own.get()), flags | O_NOCTTY);
    }
  }
  return fail(Kind::corrupt, "files.img has no descriptor of terminal {}", info.id());
}

}  // namespace ferry::state::tty
