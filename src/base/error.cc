#include "base/error.h"

#include <cerrno>
#include <cstring>

namespace ferry {

std::string Error::message() const {
  std::string out;
  for (auto it = during.rbegin(); it != during.rend(); ++it) {
    out += *it;
    out += ": ";
  }
  return out + what;
}

Kind kind_of_errno(int os_errno) {
  switch (os_errno) {
    case ESRCH:
    case ENOENT:
      return Kind::gone;
    case EPERM:
    case EACCES:
      return Kind::denied;
    case ENOSYS:
    case EOPNOTSUPP:
      return Kind::unsupported;
    default:
      return Kind::os;
  }
}

sys_fail::sys_fail(std::string call, const char* file, int line) : sys_fail(errno, std::move(call), file, line) {}

sys_fail::sys_fail(int os_errno, std::string call, const char* file, int line)
    : error{kind_of_errno(os_errno), os_errno, std::move(call) + ": " + std::strerror(os_errno), {}, file, line} {}

}  // namespace ferry
