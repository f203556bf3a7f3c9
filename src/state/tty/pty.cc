#include "state/tty/pty.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "sys/file.h"

namespace ferry::state::tty {
namespace {

constexpr unsigned kFirstSlaveMajor = 136, kLastSlaveMajor = 143;

std::optional<std::uint32_t> index_of(int master) {
  unsigned index = 0;
  if (::ioctl(master, TIOCGPTN, &index) != 0) {
    return std::nullopt;
  }
  return index;
}

}  // namespace

bool is_slave_device(dev_t rdev) { return major(rdev) >= kFirstSlaveMajor && major(rdev) <= kLastSlaveMajor; }

std::uint32_t slave_index(dev_t rdev) { return (major(rdev) - kFirstSlaveMajor) * 256 + minor(rdev); }

Result<UniqueFd> open_master(const std::string& ptmx, std::uint32_t index) {
  std::vector<UniqueFd> lower;
  for (;;) {
    FERRY_TRY(UniqueFd master, sys::open(ptmx, O_RDWR | O_NOCTTY | O_NONBLOCK));
    const auto got = index_of(master.get());
    if (!got) {
      return sys_fail(fmt::format("ioctl({}, TIOCGPTN)", ptmx));
    }
    if (*got == index) {
      return master;
    }
    if (*got > index) {
      return fail(Kind::os, "pseudoterminal {} of {} is in use by another process", index, ptmx);
    }
    lower.push_back(std::move(master));
  }
}

Result<UniqueFd> open_slave(int master, int flags) {
  // Without O_CLOEXEC, which this call, unlike open(2), leaves in the flags of the description for ever.
  UniqueFd fd(::ioctl(master, TIOCGPTPEER, (flags & ~O_CLOEXEC) | O_NOCTTY));
  if (!fd || ::fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0) {
    return sys_fail("ioctl(pseudoterminal, TIOCGPTPEER)");
  }
  return fd;
}

Result<std::string> drain(int fd, std::string_view subject) {
  std::string out;
  for (;;) {
    struct pollfd p {};
    p.fd = fd;
    p.events = POLLIN;
    if (::poll(&p, 1, 0) < 0) {
      return sys_fail(fmt::format("poll({})", subject));
    }
    if ((p.revents & POLLIN) == 0) {
      return out;
    }
    char buffer[4096];
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) {
      continue;
    }
    if (n <= 0) {  // EIO: the other side is closed and everything was read
      return out;
    }
    out.append(buffer, static_cast<std::size_t>(n));
  }
}

}  // namespace ferry::state::tty
