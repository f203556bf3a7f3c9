#include "sys/kcmp.h"

#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ferry::sys {

Result<Order> compare_files(HostPid a, int fd_a, HostPid b, int fd_b) {
  const long answer = ::syscall(SYS_kcmp, a.value, b.value, KCMP_FILE, fd_a, fd_b);
  switch (answer) {
    case 0:
      return Order::same;
    case 1:
      return Order::less;
    case 2:
      return Order::greater;
    case 3:
      return Order::unordered;
    default:
      return sys_fail(fmt::format("kcmp(pid {} fd {}, pid {} fd {})", a, fd_a, b, fd_b));
  }
}

Result<bool> is_watched_file(HostPid task, int fd, HostPid owner, int epoll, int watched, std::uint32_t position) {
  kcmp_epoll_slot slot{};
  slot.efd = static_cast<__u32>(epoll);
  slot.tfd = static_cast<__u32>(watched);
  slot.toff = position;
  const long answer = ::syscall(SYS_kcmp, task.value, owner.value, KCMP_EPOLL_TFD, fd, &slot);
  if (answer < 0) {
    return sys_fail(fmt::format("kcmp(pid {} fd {}, pid {} epoll {} watch {})", task, fd, owner, epoll, watched));
  }
  return answer == 0;
}

}  // namespace ferry::sys
