#include "programs/criu/service.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "programs/criu/server.h"
#include "programs/criu/swrk.h"
#include "sys/file.h"

namespace ferry::criu {
namespace {

constexpr const char* kDefaultAddress = "criu_service.socket";
constexpr int kBacklog = 16;
constexpr mode_t kSocketMode = 0666;  // whoever may connect is told apart by SO_PEERCRED

Result<UniqueFd> listen_at(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return fail(Kind::invalid, "the service's address {} is longer than the {} bytes of a Unix socket's name", path,
                sizeof address.sun_path - 1);
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) {
    return sys_fail("socket(AF_UNIX)");
  }
  // A socket that nobody listens on any more is in the way of bind(2); anything else of that name stays.
  struct stat st {};
  if (::lstat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode) &&
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 && errno == ECONNREFUSED) {
    ::unlink(path.c_str());
  }
  fd = UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd) {
    return sys_fail("socket(AF_UNIX)");
  }
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return sys_fail(fmt::format("bind({})", path));
  }
  if (::chmod(path.c_str(), kSocketMode) != 0 || ::listen(fd.get(), kBacklog) != 0) {
    return sys_fail(fmt::format("chmod and listen({})", path));
  }
  return fd;
}

void collect_workers() {
  while (::waitpid(-1, nullptr, WNOHANG) > 0) {
  }
}

// The worker: its peer is the process whose descriptor numbers the request has.
[[noreturn]] void work(UniqueFd connection, Settings settings, const Engine& engine) {
  settings.in_service = true;
  const WorkerEnd end = serve(connection.get(), settings, engine);
  if (!end.exec_command.empty()) {
    become(end.exec_command);
  }
  ::_exit(end.status);
}

Result<void> serve_all(int listener, const Settings& settings, const Engine& engine) {
  sigset_t children;
  ::sigemptyset(&children);
  ::sigaddset(&children, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &children, nullptr);
  const UniqueFd ended(::signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!ended) {
    return sys_fail("signalfd(SIGCHLD)");
  }
  for (;;) {
    pollfd ready[] = {{listener, POLLIN, 0}, {ended.get(), POLLIN, 0}};
    if (::poll(ready, 2, -1) < 0 && errno != EINTR) {
      return sys_fail("poll(service)");
    }
    if ((ready[1].revents & POLLIN) != 0) {
      signalfd_siginfo info{};
      while (::read(ended.get(), &info, sizeof info) > 0) {
      }
      collect_workers();
    }
    if ((ready[0].revents & POLLIN) == 0) {
      continue;
    }
    UniqueFd connection(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!connection) {
      log::warning("a connection was given up before it was accepted: {}", std::strerror(errno));
      continue;
    }
    const pid_t worker = ::fork();
    if (worker == 0) {
      ::close(listener);
      work(std::move(connection), settings, engine);
    }
    if (worker < 0) {
      log::warning("no worker for a connection: fork: {}", std::strerror(errno));
    }
  }
}

}  // namespace

Result<void> run_service(const Engine& engine, const Settings& settings, const Workplace& place) {
  FERRY_TRY(const UniqueFd listener, listen_at(settings.address.empty() ? kDefaultAddress : settings.address));
  Readiness ready;
  if (settings.restore.detached) {
    FERRY_TRY(const bool in_background, ready.go_on_in_background());
    if (!in_background) {
      return {};
    }
  }
  FERRY_CHECK(ready.tell(settings, place));
  log::info("serving requests, pid {}", ::getpid());
  return serve_all(listener.get(), settings, engine);
}

}  // namespace ferry::criu
