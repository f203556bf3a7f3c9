#include "programs/ferry/lazy_keeper.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/log.h"
#include "base/unique_fd.h"
#include "container/random_id.h"
#include "container/run_directory.h"
#include "lazy/daemon.h"
#include "sys/file.h"

namespace ferry::program {
namespace {

// The command that was called has a terminal, and a caller that waits for the end of its output.
void let_go_of_caller() {
  ::setsid();
  ::prctl(PR_SET_NAME, "ferry-lazy");
  const UniqueFd nothing(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (int fd = STDIN_FILENO; nothing && fd <= STDERR_FILENO; ++fd) {
    ::dup2(nothing.get(), fd);
  }
  // The caller may have blocked or caught them for the time of its own work.
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_UNBLOCK, &all, nullptr);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    ::signal(signal, SIG_DFL);
  }
}

// Nobody reads what it prints: what an administrator has to know goes to the system's log.
Result<lazy::FaultReport> bring(const std::string& images_dir, const std::string& socket, int ready) {
  FERRY_TRY(const UniqueFd images, sys::open(images_dir, O_RDONLY | O_DIRECTORY));
  lazy::DaemonOptions options;
  options.images_dir = images.get();
  options.work_dir = images.get();
  options.socket = socket;
  options.ready = [ready]() -> Result<void> { return sys::write_all(ready, "", 1, "the pipe to ferry start"); };
  return lazy::serve_restore(options);
}

}  // namespace

Result<LazyKeeper> LazyKeeper::start(const std::string& images_dir) {
  FERRY_TRY(const std::string id, container::random_id());
  FERRY_CHECK(container::make_run_directory());
  std::string socket = fmt::format("{}/lazy-{}.socket", container::kRunDirectory, id);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) {
    return sys_fail("fork");
  }
  if (child == 0) {
    let_go_of_caller();
    const auto brought = bring(images_dir, socket, writer.get());
    if (!brought.has_value()) {
      const std::string why = brought.error().message();
      (void)sys::write_all(writer.get(), why.data(), why.size(), "the pipe to ferry start");
      ::syslog(LOG_ERR, "ferry: lazy memory of %s: %s", images_dir.c_str(), why.c_str());
    }
    ::_exit(brought.has_value() ? 0 : 1);
  }
  writer.reset();
  LazyKeeper out(child, std::move(socket));
  char first = 1;
  ssize_t n = 0;
  do {
    n = ::read(reader.get(), &first, 1);
  } while (n < 0 && errno == EINTR);
  if (n == 1 && first == 0) {
    return out;
  }
  FERRY_TRY(const std::string why, sys::read_all(reader.get(), "the pipe to the process that brings memory"));
  return fail(Kind::os, "memory cannot be brought later: {}{}", n == 1 ? std::string(1, first) : "", why);
}

LazyKeeper::LazyKeeper(LazyKeeper&& other) noexcept
    : child_(std::exchange(other.child_, -1)), socket_(std::move(other.socket_)) {}

LazyKeeper::~LazyKeeper() {
  if (child_ > 0) {
    ::kill(child_, SIGTERM);  // not heeded once a restore has come
    ::unlink(socket_.c_str());
    (void)::waitpid(child_, nullptr, WNOHANG);
  }
}

}  // namespace ferry::program
