// criu, as runc, Podman and people call it: parse, do, say how it went.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>

#include "base/log.h"
#include "engine/check.h"
#include "engine/checkpoint.h"
#include "engine/pre_dump.h"
#include "engine/restore.h"
#include "image/dedup.h"
#include "programs/criu/command_line.h"
#include "programs/criu/operation.h"
#include "programs/criu/page_commands.h"
#include "programs/criu/service.h"
#include "programs/criu/swrk.h"
#include "state/cpu/cpuinfo.h"
#include "tracee/thread.h"

namespace ferry::criu {
namespace {

constexpr int kFailed = 1;
constexpr int kDeprecated = 255;

void print(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n <= 0) {
      return;  // nobody reads it
    }
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

// What went wrong before there was a log.
int complain(const Error& error) {
  print(STDERR_FILENO, fmt::format("Error (criu): {}\n", error.message()));
  return kFailed;
}

// Descriptors 0 to 2 that the caller left closed would be taken by our own files, which then would be
// written to as stdout and stderr.
void occupy_standard_streams() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (::fcntl(fd, F_GETFD) < 0 && errno == EBADF) {
      const int opened = ::open("/dev/null", O_RDWR);
      if (opened >= 0 && opened != fd) {
        ::close(opened);
      }
    }
  }
}

int end_dump(const DumpOutcome& outcome, const Settings& settings) {
  if (!outcome.result.has_value()) {
    return outcome.script_status != 0 ? outcome.script_status : kFailed;
  }
  if (settings.display_stats) {
    print(STDOUT_FILENO, outcome.stats);
  }
  return 0;
}

int dedup(const Workplace& place) {
  const auto pages = image::punch_parents(place.images());
  if (!pages.has_value()) {
    log::error(pages.error());
    return kFailed;
  }
  log::info("{} pages were taken out of the parent sets", *pages);
  return 0;
}

// The status that the root task ends with, as a shell would give it on.
int wait_for_root(pid_t root) {
  int status = 0;
  while (::waitpid(root, &status, 0) < 0) {
    if (errno != EINTR) {
      Result<void> failed = sys_fail(fmt::format("waitpid({})", root));
      log::error(failed.error());
      return kFailed;
    }
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int restore(const Engine& engine, const Settings& settings, const Workplace& place) {
  if (settings.dump.pid.value != 0) {
    log::warning("option --tree has no meaning for restore: the images say which process it is");
  }
  const RestoreOutcome outcome = run_restore(engine, settings, place, nullptr);
  if (!outcome.result.has_value()) {
    return kFailed;
  }
  if (settings.display_stats) {
    print(STDOUT_FILENO, outcome.stats);
  }
  if (settings.exec_after_restore) {
    return become(settings.exec_command);
  }
  return settings.restore.detached ? 0 : wait_for_root(outcome.root);
}

int check(const Settings& settings) {
  if (!settings.check_feature.empty()) {
    const auto feature = engine::probe_feature(settings.check_feature);
    if (!feature.has_value()) {
      return complain(feature.error());
    }
    switch (*feature) {
      case engine::Feature::available:
        print(STDOUT_FILENO, fmt::format("{} is supported\n", settings.check_feature));
        return 0;
      case engine::Feature::missing:
        print(STDERR_FILENO, fmt::format("{} is not supported by this kernel\n", settings.check_feature));
        return kFailed;
      case engine::Feature::unused:
        print(STDERR_FILENO, fmt::format("{} is not supported by this version of ferry\n", settings.check_feature));
        return kFailed;
      case engine::Feature::unknown:
        print(STDERR_FILENO, fmt::format("there is no feature \"{}\"\n", settings.check_feature));
        return kFailed;
    }
  }
  if (const auto needed = engine::check_required_features(); !needed.has_value()) {
    return complain(needed.error());
  }
  if (settings.check_extra) {
    if (const auto extra = engine::check_extra_features(); !extra.has_value()) {
      return complain(extra.error());
    }
  }
  print(STDOUT_FILENO, "Looks good.\n");
  return 0;
}

int in_workplace(const Engine& engine, const Invocation& run) {
  const auto place = Workplace::open(run.settings);
  if (!place.has_value()) {
    return complain(place.error());
  }
  if (run.command == Command::dump) {
    return end_dump(run_dump(engine, run.settings, *place, nullptr), run.settings);
  }
  if (run.command == Command::pre_dump) {
    return end_dump(run_pre_dump(engine, run.settings, *place), run.settings);
  }
  if (run.command == Command::dedup) {
    return dedup(*place);
  }
  if (run.command == Command::restore) {
    return restore(engine, run.settings, *place);
  }
  if (run.command == Command::service || run.command == Command::page_server || run.command == Command::lazy_pages) {
    const Result<void> ended = run.command == Command::service       ? run_service(engine, run.settings, *place)
                               : run.command == Command::page_server ? run_page_server(run.settings, *place)
                                                                     : run_lazy_pages(run.settings, *place);
    if (!ended.has_value()) {
      log::error(ended.error());
    }
    return ended.has_value() ? 0 : kFailed;
  }
  const Result<void> result = run.command == Command::cpuinfo_dump
                                  ? state::cpu::dump_cpuinfo(place->images())
                                  : state::cpu::check_cpuinfo(place->images(), run.settings.common.cpu_capability);
  if (!result.has_value()) {
    log::error(result.error());
    return kFailed;
  }
  return 0;
}

// Signals that end a program which writes to where it cannot: then nothing would be undone.  Handlers, not
// SIG_IGN: what we execute has the default again (execve(2)).  The write reports its error.
void survive_writes() {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  for (const int signal : {SIGPIPE, SIGXFSZ}) {
    ::sigaction(signal, &action, nullptr);
  }
}

int work(std::vector<std::string> arguments) {
  survive_writes();
  occupy_standard_streams();
  const auto run = parse_command_line(std::move(arguments));
  if (!run.has_value()) {
    return complain(run.error());
  }
  for (const int fd : run->settings.close_fds) {
    ::close(fd);
  }
  const Engine engine{[](const auto& options, auto& listener) { return engine::checkpoint(options, listener); },
                      engine::restore, engine::pre_dump};
  switch (run->command) {
    case Command::help:
      print(STDOUT_FILENO, help_text());
      return 0;
    case Command::version:
      print(STDOUT_FILENO, version_text());
      return 0;
    case Command::check:
      return check(run->settings);
    case Command::swrk: {
      const WorkerEnd end = serve(run->swrk_fd, run->settings, engine);
      return end.exec_command.empty() ? end.status : become(end.exec_command);
    }
    case Command::deprecated:
      print(STDERR_FILENO, fmt::format("Error (criu): the command {} is deprecated, in CRIU too; crit and ferry image "
                                       "show look into images\n",
                                       run->deprecated));
      return kDeprecated;
    case Command::dump:
    case Command::pre_dump:
    case Command::dedup:
    case Command::restore:
    case Command::cpuinfo_dump:
    case Command::cpuinfo_check:
    case Command::service:
    case Command::page_server:
    case Command::lazy_pages:
      return in_workplace(engine, *run);
  }
  return kFailed;
}

}  // namespace
}  // namespace ferry::criu

int main(int argc, char** argv) {
  ferry::tracee::block_sigchld();
  return ferry::criu::work(std::vector<std::string>(argv, argv + argc));
}
