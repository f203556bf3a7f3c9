#include "sys/example.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "sys/file.h"
#include "sys/proc.h"

namespace ferry::sys {
namespace {

[[noreturn]] void sleep_until_killed() {
  for (;;) {
    ::pause();
  }
}

}  // namespace

Result<Example> Example::start(const std::function<bool()>& become, std::string_view what) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return sys_fail("pipe2()");
  }
  const UniqueFd ready(ends[0]);
  UniqueFd say(ends[1]);
  Example out;
  out.pid_ = ::fork();
  if (out.pid_ < 0) {
    return sys_fail("fork()");
  }
  if (out.pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (become() && ::write(say.get(), "", 1) == 1) {
      sleep_until_killed();
    }
    ::_exit(1);
  }
  say.reset();
  char byte;
  if (::read(ready.get(), &byte, 1) != 1) {
    return fail(Kind::os, "{} could not be made", what);
  }
  return out;
}

Example::~Example() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    (void)::waitpid(pid_, nullptr, 0);
  }
}

bool Example::bear_child() {
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() == parent) {  // it has not ended before that
      sleep_until_killed();
    }
    ::_exit(1);
  }
  return child > 0;
}

Result<HostPid> Example::child() const {
  FERRY_TRY(const std::string text, read_file(fmt::format("/proc/{}/task/{}/children", pid_, pid_)));
  FERRY_TRY(const auto children, parse_children(text));
  if (children.size() != 1) {
    return fail(Kind::os, "pid {} of ours has {} children, not one", pid_, children.size());
  }
  return children.front();
}

}  // namespace ferry::sys
