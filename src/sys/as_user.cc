#include "sys/as_user.h"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

namespace ferry::sys {

Result<void> as_user(std::uint32_t uid, std::uint32_t euid, const std::function<Result<void>()>& work) {
  if (uid == ::getuid() && euid == ::geteuid()) {
    return work();
  }
  Result<void> out;
  const int dumpable = ::prctl(PR_GET_DUMPABLE);
  // The system call itself: the C library's would change all threads (nptl(7)).
  std::thread([&] {
    if (::syscall(SYS_setresuid, uid, euid, -1) != 0) {
      out = sys_fail(fmt::format("setresuid({}, {})", uid, euid));
      return;
    }
    out = work();
  }).join();
  ::prctl(PR_SET_DUMPABLE, dumpable);  // prctl(2): a change of user takes it away from the whole process
  return out;
}

}  // namespace ferry::sys
