#include "engine/console.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "base/unique_fd.h"
#include "image/proto/tty.pb.h"
#include "state/tty/tty.h"

namespace ferry::engine {
namespace {

constexpr const char* kPtmx = "/dev/pts/ptmx";  // of the root's own mount namespace

Result<UniqueFd> copy_of(int pidfd, int theirs) {
  UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_getfd, pidfd, theirs, 0)));
  if (!fd) {
    return sys_fail(fmt::format("pidfd_getfd(skeleton, fd {})", theirs));
  }
  return fd;
}

Result<void> make_console(state::RestoreContext& context, int pidfd, std::uint32_t index, std::vector<InheritFd>& out) {
  state::RestoreTask& root = context.root();
  for (;;) {
    tracee::Batch open;
    const auto opened = open.must("opening /dev/pts/ptmx", SYS_openat,
                                  {AT_FDCWD, open.string(kPtmx), O_RDWR | O_NOCTTY | O_NONBLOCK, 0});
    FERRY_TRY(const auto replies, root.process.run(root.leader(), open));
    const int theirs = static_cast<int>(replies[opened]);
    FERRY_TRY(const UniqueFd master, copy_of(pidfd, theirs));
    unsigned got = 0;
    if (::ioctl(master.get(), TIOCGPTN, &got) != 0) {
      return sys_fail(fmt::format("ioctl({}, TIOCGPTN)", kPtmx));
    }
    if (got > index) {
      return fail(Kind::os, "pseudoterminal {} of {} is in use by another process", index, kPtmx);
    }
    if (got < index) {
      continue;  // holds the lower number until the skeleton's other descriptors are closed
    }
    const int unlocked = 0;
    if (::ioctl(master.get(), TIOCSPTLCK, &unlocked) != 0) {
      return sys_fail(fmt::format("ioctl({}, TIOCSPTLCK)", kPtmx));
    }
    tracee::Batch peer;
    const auto slave =
        peer.must("opening the other side of a terminal", SYS_ioctl, {theirs, TIOCGPTPEER, O_RDWR | O_NOCTTY});
    FERRY_TRY(const auto peers, root.process.run(root.leader(), peer));
    out.push_back({state::prepared_master_key(index), theirs});
    out.push_back({fmt::format("ferry-pty-slave[{}]", index), static_cast<int>(peers[slave])});
    FERRY_CHECK(context.listener.on({Stage::orphan_pts_master, {}, master.get()}));
    return {};
  }
}

}  // namespace

Result<std::vector<InheritFd>> make_consoles(state::RestoreContext& context) {
  std::vector<InheritFd> out;
  const auto infos = context.set.list<pb::TtyInfoEntry>({image::Type::tty_info});
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, context.root().pid.value, 0)));
  if (!pidfd) {
    return sys_fail(fmt::format("pidfd_open({})", context.root().pid));
  }
  // The id of a slave is twice its index, that of its master one more.
  const auto has = [&](std::uint32_t id) {
    for (const auto* info : infos) {
      if (info->id() == id) {
        return true;
      }
    }
    return false;
  };
  for (const auto* info : infos) {
    if (info->type() == pb::TTYTYPE_PTY && (info->id() & 1) == 0 && !has(info->id() | 1)) {
      FERRY_CHECK(make_console(context, pidfd.get(), info->pty().index(), out)
                      .during("making terminal {}", info->pty().index()));
    }
  }
  return out;
}

}  // namespace ferry::engine
