#include "sys/as_user.h"

#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

namespace ferry::sys {

Result<void> as_user(const User& user, const std::function<Result<void>()>& work) {
  if (user.uid == ::getuid() && user.euid == ::geteuid() &&
      (!user.gid.has_value() || (*user.gid == ::getgid() && *user.gid == ::getegid()))) {
    return work();
  }
  Result<void> out;
  const int dumpable = ::prctl(PR_GET_DUMPABLE);
  // The system calls themselves: the C library's would change all threads (nptl(7)).  The group first, because the user
  // may not change it.
  std::thread([&] {
    if (user.gid.has_value() && ::syscall(SYS_setresgid, *user.gid, *user.gid, -1) != 0) {
      out = sys_fail(fmt::format("setresgid({})", *user.gid));
      return;
    }
    if (::syscall(SYS_setresuid, user.uid, user.euid, -1) != 0) {
      out = sys_fail(fmt::format("setresuid({}, {})", user.uid, user.euid));
      return;
    }
    out = work();
  }).join();
  ::prctl(PR_SET_DUMPABLE, dumpable);  // prctl(2): a change of user takes it away from the whole process
  return out;
}

}  // namespace ferry::sys
