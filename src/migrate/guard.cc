#include "migrate/guard.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>

#include "base/log.h"

namespace ferry::migrate {
namespace {

constexpr std::string_view kDismissed = "dismissed";

// A terminal's Ctrl-C is for the one we guard.
void hold_all_signals() {
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
}

[[noreturn]] void stand(int pipe, const std::function<void(const Guard::Lines&)>& at_death) {
  ::setsid();
  hold_all_signals();
  const int nowhere = ::open("/dev/null", O_RDWR);
  for (const int fd : {0, 1, 2}) {
    ::dup2(nowhere, fd);
  }
  constexpr int kPipe = 3;
  ::dup2(pipe, kPipe);
  ::close_range(kPipe + 1, UINT_MAX, 0);
  std::string text;
  std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t got = ::read(kPipe, buffer.data(), buffer.size());
    if (got == 0 || (got < 0 && errno != EINTR)) {
      break;
    }
    text.append(buffer.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  }
  ::close(kPipe);
  Guard::Lines lines;
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    lines.push_back(text.substr(begin, end - begin));
  }
  if (lines.empty() || lines.back() != kDismissed) {
    at_death(lines);
  }
  ::_exit(0);
}

}  // namespace

Result<Guard> Guard::post(const std::function<void(const Lines&)>& at_death) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  // Twice, so that the guard is nobody's child that would have to be waited for.
  const pid_t pid = ::fork();
  if (pid < 0) {
    return sys_fail("fork");
  }
  if (pid == 0) {
    const pid_t guard = ::fork();
    if (guard == 0) {
      stand(reader.get(), at_death);
    }
    ::_exit(guard < 0 ? 1 : 0);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) {
    return fail(Kind::os, "no guard process could be made for the move");
  }
  return Guard(std::move(writer));
}

Result<void> Guard::tell(std::string_view line) {
  const std::string text = std::string(line) + "\n";
  // Shorter than PIPE_BUF, so it arrives whole or not at all (pipe(7)).
  for (;;) {
    if (::write(pipe_.get(), text.data(), text.size()) >= 0) {
      return {};
    }
    if (errno != EINTR) {
      return sys_fail("write(guard)");
    }
  }
}

void Guard::dismiss() {
  if (pipe_) {
    if (auto told = tell(kDismissed); !told) {
      log::warning("the guard of the move could not be dismissed: {}", told.error().message());
    }
  }
}

}  // namespace ferry::migrate
