#include "migrate/held_output.h"

#include <fcntl.h>
#include <signal.h>

#include "base/unique_fd.h"

namespace ferry::migrate {
namespace {

constexpr int kHeldPipe = 1 << 20;

}  // namespace

Result<void> HeldOutput::hold(HostPid shim, HostPid root) {
  if (::kill(shim.value, SIGSTOP) != 0) {
    return sys_fail(fmt::format("kill({}, SIGSTOP)", shim));
  }
  shim_ = shim;
  for (const int fd : {1, 2}) {
    // Room for what is printed meanwhile.  Terminals and files refuse, which is as well.
    const UniqueFd output(
        ::open(fmt::format("/proc/{}/fd/{}", root, fd).c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (output) {
      ::fcntl(output.get(), F_SETPIPE_SZ, kHeldPipe);
    }
  }
  return {};
}

void HeldOutput::release() {
  if (shim_.value > 0) {
    ::kill(shim_.value, SIGCONT);
    shim_ = HostPid();
  }
}

}  // namespace ferry::migrate
