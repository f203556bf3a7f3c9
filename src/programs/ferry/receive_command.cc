// ferry receive: started on the destination by ferry migrate, through a remote shell.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>

#include "base/unique_fd.h"
#include "migrate/receive.h"
#include "programs/ferry/command.h"

namespace ferry::program {
namespace {

Result<void> receive() {
  // Nothing else may be printed into the protocol, nor read from it.
  UniqueFd in(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3));
  UniqueFd out(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
  const UniqueFd nowhere(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!in || !out || !nowhere) {
    return sys_fail("fcntl(F_DUPFD_CLOEXEC)");
  }
  if (::isatty(in.get()) == 1) {
    return fail(Kind::invalid, "ferry receive is started by ferry migrate and speaks to no terminal");
  }
  ::dup2(nowhere.get(), STDIN_FILENO);
  ::dup2(STDERR_FILENO, STDOUT_FILENO);
  return migrate::receive(std::move(in), std::move(out));
}

}  // namespace

void add_receive(CLI::App& root, Commands& commands) {
  CLI::App* received = root.add_subcommand("receive", "Take a container from another host; ferry migrate starts this");
  commands.push_back({received, true, [] { return receive(); }});
}

}  // namespace ferry::program
