#include "migrate/remote_shell.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>

namespace ferry::migrate {
namespace {

constexpr int kEndLimitMs = 5000;  // for a remote shell whose connection was closed

Result<std::array<UniqueFd, 2>> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return sys_fail("pipe2");
  }
  return std::array<UniqueFd, 2>{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

}  // namespace

struct RemoteShell::Errors {
  std::mutex lock;
  bool shown = false;
  std::vector<std::string> lines{};  // not shown yet

  void add(const std::string& name, std::string text) {
    while (!text.empty() && text.back() == '\r') {
      text.pop_back();
    }
    const std::lock_guard<std::mutex> held(lock);
    if (shown) {
      fmt::print(stderr, "{}: {}\n", name, text);
    } else if (!text.empty()) {
      lines.push_back(std::move(text));
    }
  }
  void read(const UniqueFd& from, const std::string& name) {
    std::string line;
    std::array<char, 4096> buffer{};
    for (;;) {
      const ssize_t got = ::read(from.get(), buffer.data(), buffer.size());
      if (got < 0 && errno == EINTR) {
        continue;
      }
      if (got <= 0) {
        break;
      }
      line.append(buffer.data(), static_cast<std::size_t>(got));
      for (std::size_t end = 0; (end = line.find('\n')) != std::string::npos; line.erase(0, end + 1)) {
        add(name, line.substr(0, end));
      }
    }
    if (!line.empty()) {
      add(name, line);
    }
  }
};

Result<std::vector<std::string>> split_words(const std::string& command) {
  std::vector<std::string> words;
  std::string word;
  bool in_word = false;
  char quote = 0;
  for (std::size_t i = 0; i < command.size(); ++i) {
    const char c = command[i];
    if (c == '\\' && quote != '\'') {
      if (++i == command.size()) {
        return fail(Kind::invalid, "the command \"{}\" ends in a backslash", command);
      }
      word += command[i];
      in_word = true;
    } else if (quote != 0) {
      if (c == quote) {
        quote = 0;
      } else {
        word += c;
      }
    } else if (c == '\'' || c == '"') {
      quote = c;
      in_word = true;
    } else if (c == ' ' || c == '\t' || c == '\n') {
      if (in_word) {
        words.push_back(std::exchange(word, {}));
        in_word = false;
      }
    } else {
      word += c;
      in_word = true;
    }
  }
  if (quote != 0) {
    return fail(Kind::invalid, "the command \"{}\" has an open quote", command);
  }
  if (in_word) {
    words.push_back(word);
  }
  if (words.empty()) {
    return fail(Kind::invalid, "the command for the remote shell is empty");
  }
  return words;
}

Result<RemoteShell> RemoteShell::start(const std::string& command, const std::string& destination,
                                       const std::vector<std::string>& arguments) {
  if (destination.empty() || destination.front() == '-') {
    return fail(Kind::invalid, "\"{}\" is no name of a host", destination);
  }
  FERRY_TRY(std::vector<std::string> words, split_words(command));
  words.push_back(destination);
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) {
    argv.push_back(word.data());
  }
  argv.push_back(nullptr);
  FERRY_TRY(auto input, make_pipe());
  FERRY_TRY(auto output, make_pipe());
  FERRY_TRY(auto errors, make_pipe());

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, input[0].get(), 0);
  posix_spawn_file_actions_adddup2(&actions, output[1].get(), 1);
  posix_spawn_file_actions_adddup2(&actions, errors[1].get(), 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  // We hold signals back and ignore SIGPIPE; the program must not.
  sigset_t none;
  sigemptyset(&none);
  sigset_t broken_pipe;
  sigemptyset(&broken_pipe);
  sigaddset(&broken_pipe, SIGPIPE);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &broken_pipe);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  pid_t pid = -1;
  const int failed = ::posix_spawnp(&pid, argv.front(), &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) {
    return Result<RemoteShell>(sys_fail(failed, fmt::format("starting {}", words.front())))
        .during("reaching {}", destination);
  }
  RemoteShell shell;
  shell.name_ = words.front() + " " + destination;
  shell.pid_ = pid;
  shell.input_ = std::move(input[1]);
  shell.output_ = std::move(output[0]);
  // A full pipe must not keep us from noticing that the user wants to stop.
  ::fcntl(shell.input_.get(), F_SETFL, O_NONBLOCK);
  ::fcntl(shell.input_.get(), F_SETPIPE_SZ, 1 << 20);   // fewer switches between us and the shell;
  ::fcntl(shell.output_.get(), F_SETPIPE_SZ, 1 << 20);  // where it is not allowed, it stays as it is
  shell.errors_ = std::make_shared<Errors>();
  shell.destination_ = destination;
  shell.reader_ =
      std::thread([from = std::move(errors[0]), to = shell.errors_, destination] { to->read(from, destination); });
  return shell;
}

RemoteShell::RemoteShell(RemoteShell&& other) noexcept
    : name_(std::move(other.name_)),
      destination_(std::move(other.destination_)),
      pid_(std::exchange(other.pid_, -1)),
      status_(other.status_),
      input_(std::move(other.input_)),
      output_(std::move(other.output_)),
      errors_(std::move(other.errors_)),
      reader_(std::move(other.reader_)) {}

void RemoteShell::show_errors() {
  const std::lock_guard<std::mutex> held(errors_->lock);
  errors_->shown = true;
  for (const std::string& line : errors_->lines) {
    fmt::print(stderr, "{}: {}\n", destination_, line);
  }
  errors_->lines.clear();
}

int RemoteShell::wait(bool force) {
  if (pid_ <= 0) {
    return status_;
  }
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0)));
  pollfd wanted{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
  if (pidfd && ::poll(&wanted, 1, kEndLimitMs) == 0) {
    if (!force) {
      return -1;
    }
    ::kill(pid_, SIGKILL);
  }
  while (::waitpid(pid_, &status_, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return status_;
}

std::string RemoteShell::obituary() {
  const int status = wait(false);
  if (pid_ > 0) {
    return name_ + " still runs";
  }
  if (reader_.joinable()) {
    reader_.join();  // nobody is left to print anything
  }
  std::string said;
  for (const std::string& line : errors_->lines) {
    said += (said.empty() ? "" : "; ") + line;
  }
  const std::string how = WIFSIGNALED(status) ? fmt::format("{} was ended by signal {}", name_, WTERMSIG(status))
                                              : fmt::format("{} ended with exit status {}", name_, WEXITSTATUS(status));
  const bool not_found = WIFEXITED(status) && WEXITSTATUS(status) == 127;
  return (said.empty() ? how : fmt::format("{} ({})", said, how)) +
         (not_found ? ": is ferry installed there, and on the PATH of a shell that is not a login shell?" : "");
}

RemoteShell::~RemoteShell() {
  input_.reset();
  output_.reset();
  if (pid_ > 0) {
    wait(true);
  }
  if (reader_.joinable()) {
    reader_.join();
  }
}

}  // namespace ferry::migrate
