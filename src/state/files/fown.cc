// Owner, signal and status flags of a description: fcntl(2).
#include <fcntl.h>

#include <cerrno>

#include "state/file_kind.h"
#include "sys/as_user.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

constexpr int kGetOwnerUids = 17;  // F_GETOWNER_UIDS, in the kernel's uapi but not in the C library's header

}  // namespace

Result<void> collect_fown(const FdProbe& probe, const DumpContext& context, pb::FownEntry& out) {
  out.set_uid(0);
  out.set_euid(0);
  out.set_signum(0);
  out.set_pid_type(0);
  out.set_pid(0);
  if ((probe.info.flags & O_PATH) != 0) {
    return {};
  }
  const int signal = ::fcntl(probe.ours, F_GETSIG);
  if (signal < 0) {
    return sys_fail(fmt::format("fcntl(F_GETSIG) of {}", probe.subject()));
  }
  out.set_signum(static_cast<std::uint32_t>(signal));
  f_owner_ex owner{};
  if (::fcntl(probe.ours, F_GETOWN_EX, &owner) != 0) {
    return sys_fail(fmt::format("fcntl(F_GETOWN_EX) of {}", probe.subject()));
  }
  if (owner.pid == 0) {
    return {};
  }
  out.set_pid_type(static_cast<std::uint32_t>(owner.type));
  NsPid inner;
  for (const auto& task : context.tasks) {
    if (owner.type == F_OWNER_PGRP ? task->stat.pgrp == owner.pid : task->pid.value == owner.pid) {
      inner = owner.type == F_OWNER_PGRP ? task->ns_pgid : task->ns_pid;
    }
    for (const DumpThread& thread : task->threads) {
      if (owner.type == F_OWNER_TID && thread.tid.value == owner.pid) {
        inner = thread.ns_tid;
      }
    }
  }
  if (inner.value == 0) {
    return fail(Kind::unsupported, "{}: its signals go to pid {}, which is not part of the tree", probe.subject(),
                owner.pid);
  }
  out.set_pid(static_cast<std::uint32_t>(inner.value));
  std::uint32_t uids[2] = {0, 0};
  if (::fcntl(probe.ours, kGetOwnerUids, uids) == 0) {
    out.set_uid(uids[0]);
    out.set_euid(uids[1]);
  }
  return {};
}

Result<void> restore_fown(int fd, const pb::FownEntry& entry, const RestoreContext& context) {
  if (entry.signum() != 0 && ::fcntl(fd, F_SETSIG, static_cast<int>(entry.signum())) != 0) {
    return sys_fail(fmt::format("fcntl(F_SETSIG, {})", entry.signum()));
  }
  if (entry.pid() == 0) {
    return {};
  }
  const NsPid wanted(static_cast<pid_t>(entry.pid()));
  const bool group = entry.pid_type() == F_OWNER_PGRP;
  pid_t ours = 0;
  for (const auto& task : context.tasks) {
    if (group && static_cast<pid_t>(task->entry->pgid()) == wanted.value) {
      ours = ::getpgid(task->pid.value);  // its leader may be dead
      break;
    }
    if (!group && task->ns_pid() == wanted) {
      ours = task->pid.value;
    }
    for (const RestoreThread& thread : task->threads) {
      if (!group && thread.ns_tid == wanted && thread.tid.value != 0) {
        ours = thread.tid.value;
      }
    }
  }
  if (ours == 0) {
    return fail(Kind::corrupt, "an open file sends its signals to pid {}, which is not in the set", entry.pid());
  }
  const f_owner_ex owner{static_cast<__pid_type>(entry.pid_type()), ours};
  // fcntl(2), F_SETOWN: the kernel remembers who asked, and checks by that whether a signal may be sent.
  return sys::as_user({entry.uid(), entry.euid()}, [&]() -> Result<void> {
    if (::fcntl(fd, F_SETOWN_EX, &owner) != 0) {
      return sys_fail(fmt::format("fcntl(F_SETOWN_EX, {})", ours));
    }
    return {};
  });
}

std::uint32_t status_flags_of(const pb::FileEntry& entry, const OpenFiles& files) {
  switch (entry.type()) {
    case pb::FD_REG:
      return entry.reg().flags();
    case pb::FD_PIPE:
      return entry.pipe().flags() | (entry.pipe().ferry_packet_mode() ? O_DIRECT : 0U);
    case pb::FD_FIFO: {
      const pb::FileEntry* path = files.entry(entry.fifo().regf_id());
      return path == nullptr ? 0 : path->reg().flags();
    }
    case pb::FD_INETSK:
      return entry.isk().flags();
    case pb::FD_UNIXSK:
      return entry.usk().flags();
    case pb::FD_NETLINKSK:
      return entry.nlsk().flags();
    case pb::FD_PACKETSK:
      return entry.psk().flags();
    case pb::FD_TTY:
      return entry.tty().flags();
    case pb::FD_INOTIFY:
      return entry.ify().flags();
    default:
      return 0;  // has no asynchronous I/O
  }
}

Result<void> restore_status_flags(int fd, std::uint32_t flags) {
  constexpr std::uint32_t settable = O_APPEND | O_DIRECT | O_NOATIME | O_NONBLOCK;
  const int now = ::fcntl(fd, F_GETFL);
  if (now < 0) {
    return sys_fail(fmt::format("fcntl({}, F_GETFL)", fd));
  }
  const auto wanted = (static_cast<std::uint32_t>(now) & ~settable) | (flags & settable);
  if (wanted != static_cast<std::uint32_t>(now) && ::fcntl(fd, F_SETFL, static_cast<int>(wanted)) != 0) {
    return sys_fail(fmt::format("fcntl({}, F_SETFL, {:#x})", fd, wanted));
  }
  return {};
}

}  // namespace ferry::state
