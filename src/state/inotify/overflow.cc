#include "state/inotify/overflow.h"

#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "sys/file.h"

namespace ferry::state::inotify {
namespace {

// Events of a watched file have no name, and neither has the overflow.
constexpr int kEventSize = sizeof(inotify_event);

Result<int> unread(int fd) {
  int bytes = 0;
  if (::ioctl(fd, FIONREAD, &bytes) != 0) {
    return sys_fail("ioctl(inotify, FIONREAD)");
  }
  return bytes;
}

}  // namespace

Result<void> make_overflow(int fd) {
  const UniqueFd file(::memfd_create("ferry", MFD_CLOEXEC));
  if (!file) {
    return sys_fail("memfd_create");
  }
  const std::string path = fmt::format("/proc/self/fd/{}", file.get());
  const int watch = ::inotify_add_watch(fd, path.c_str(), IN_OPEN | IN_CLOSE_NOWRITE);
  if (watch < 0) {
    return sys_fail("inotify_add_watch(a file of ours)");
  }
  // Opening and closing by turns, because the kernel merges equal neighbours.  Two that change nothing any more
  // mean that the queue is full and has the overflow as its last.
  int before = -1;
  for (int now = 0; now != before;) {
    before = now;
    for (int i = 0; i < 2; ++i) {
      FERRY_TRY(const UniqueFd opened, sys::open(path, O_RDONLY));
    }
    FERRY_TRY(now, unread(fd));
  }
  // The IN_IGNORED of this falls to the overflow as well.
  if (::inotify_rm_watch(fd, watch) != 0) {
    return sys_fail("inotify_rm_watch");
  }
  std::vector<char> room(1U << 20);
  for (;;) {
    FERRY_TRY(const int left, unread(fd));
    if (left <= kEventSize) {
      return {};
    }
    const auto take = std::min<std::size_t>(room.size(), static_cast<std::size_t>(left - kEventSize));
    if (::read(fd, room.data(), take) < 0) {
      return sys_fail("read(inotify)");
    }
  }
}

}  // namespace ferry::state::inotify
