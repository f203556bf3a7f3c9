#include "programs/criu/server.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "programs/criu/listeners.h"

namespace ferry::criu {
namespace {

Result<void> write_pid(const std::string& path, int work_dir) {
  if (path.empty()) {
    return {};
  }
  const UniqueFd file{::openat(work_dir, path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
  const std::string text = fmt::format("{}", ::getpid());
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return sys_fail(fmt::format("writing the pid file {}", path));
  }
  return {};
}

Result<void> tell_ready(int status_fd) {
  const char zero = 0;
  if (status_fd >= 0 && ::write(status_fd, &zero, 1) != 1) {
    return sys_fail(fmt::format("write(status fd {})", status_fd));
  }
  if (status_fd >= 0) {
    ::close(status_fd);
  }
  return {};
}

}  // namespace

Result<bool> Readiness::go_on_in_background() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) {
    return sys_fail("fork");
  }
  if (child == 0) {
    ::setsid();
    // daemon(3): whoever reads what the caller prints shall not wait for us.
    const UniqueFd nothing(::open("/dev/null", O_RDWR | O_CLOEXEC));
    for (int fd = STDIN_FILENO; nothing && fd <= STDERR_FILENO; ++fd) {
      ::dup2(nothing.get(), fd);
    }
    waiting_ = std::move(writer);
    return true;
  }
  writer.reset();
  char byte = 0;
  ssize_t n = 0;
  do {
    n = ::read(reader.get(), &byte, 1);
  } while (n < 0 && errno == EINTR);
  if (n != 1) {
    return fail(Kind::os, "the server ended before it was ready; its log says why");
  }
  return false;
}

Result<void> Readiness::tell(const Settings& settings, const Workplace& place) {
  FERRY_CHECK(write_pid(settings.pidfile, place.work()));
  ActionScripts scripts(settings.action_scripts, place.images(), HostPid{});
  FERRY_CHECK(scripts.on({engine::Stage::status_ready, std::nullopt, -1}));
  FERRY_CHECK(tell_ready(settings.status_fd));
  return waiting_ ? tell_ready(waiting_.release()) : Result<void>();
}

}  // namespace ferry::criu
