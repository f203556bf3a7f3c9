#include "container/run_program.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>

#include "base/unique_fd.h"

namespace ferry::container {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kTextLimit = 65536;

Result<pid_t> spawn(const std::vector<std::string>& argv, int out_fd) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) {
    arguments.push_back(const_cast<char*>(argument.c_str()));
  }
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out_fd, 1);
  posix_spawn_file_actions_adddup2(&actions, out_fd, 2);
  pid_t pid = -1;
  const int failed = ::posix_spawn(&pid, argv.front().c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    return sys_fail(failed, fmt::format("posix_spawn({})", argv.front()));
  }
  return pid;
}

int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Result<ProgramOutput> run_program(const std::vector<std::string>& argv, std::chrono::milliseconds limit) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  const UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  FERRY_TRY(const pid_t pid, spawn(argv, writer.get()));
  writer.reset();
  ProgramOutput output;
  const auto deadline = Clock::now() + limit;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd wanted{.fd = reader.get(), .events = POLLIN, .revents = 0};
    const int ready = left <= 0 ? 0 : ::poll(&wanted, 1, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) {
      continue;
    }
    std::array<char, 4096> buffer{};
    const ssize_t got = ready > 0 ? ::read(reader.get(), buffer.data(), buffer.size()) : -1;
    if (got < 0) {
      ::kill(pid, SIGKILL);
      wait_for(pid);
      return fail(Kind::os, "{} did not finish within {} ms", argv.front(), limit.count());
    }
    if (got == 0) {
      break;
    }
    output.text.append(buffer.data(), std::min(static_cast<std::size_t>(got), kTextLimit - output.text.size()));
  }
  output.status = wait_for(pid);
  return output;
}

}  // namespace ferry::container
