#include "migrate/send.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <chrono>

#include "base/log.h"
#include "container/move_source.h"
#include "container/preflight.h"
#include "container/random_id.h"
#include "migrate/guard.h"
#include "migrate/logbook.h"
#include "migrate/remote_shell.h"
#include "migrate/sender.h"
#include "migrate/settle.h"
#include "tracee/thread.h"

namespace ferry::migrate {
namespace {

using container::Departure;
using container::Docker;

// What is left to do when we were killed.
void clean_up_after(const Guard::Lines& lines) {
  for (const std::string& line : lines) {
    if (line.starts_with("move ")) {
      settle_patiently(line.substr(5), Role::source);
    }
  }
}

class HeldBack {  // signals that end a program, readable instead
 public:
  HeldBack() {
    sigset_t held;
    sigemptyset(&held);
    for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
      sigaddset(&held, number);
    }
    ::sigprocmask(SIG_BLOCK, &held, &before_);
    fd_.reset(::signalfd(-1, &held, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  HeldBack(const HeldBack&) = delete;
  HeldBack& operator=(const HeldBack&) = delete;
  ~HeldBack() {
    // One that was obeyed has had its effect.
    signalfd_siginfo seen{};
    while (::read(fd_.get(), &seen, sizeof seen) == sizeof seen) {
    }
    ::sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  sigset_t before_{};
  UniqueFd fd_;
};
Result<Logbook> open_logbook(const SendOptions& options, const Departure& departure) {
  const container::Container& container = departure.container();
  Entry entry;
  FERRY_TRY(entry.move, container::random_id());
  entry.role = Role::source;
  entry.container_id = container.id;
  entry.container_name = container.name;
  entry.peer = options.destination;
  entry.rsh = options.rsh;
  entry.restart_policy = container.restart_policy.name;
  entry.restart_retries = container.restart_policy.maximum_retries;
  entry.keep_source = options.keep_source;
  entry.freeze_cgroup = departure.facts().freeze_cgroup;
  return Logbook::open(std::move(entry));
}

// A move that failed because the container is not what it was a moment ago says so, and not what that broke.
Error what_the_user_did(Docker& docker, const container::Container& container, Error error) {
  const auto now = docker.container(container.id);
  if (!now && now.error().kind == Kind::gone) {
    return Error{.kind = Kind::gone,
                 .what = fmt::format("container {} was removed while it was being moved", container.name),
                 .during = {}};
  }
  if (now && !now->running()) {
    const bool paused = now->status == "paused";
    return Error{.kind = Kind::gone,
                 .what = fmt::format("container {} {} while it was being moved; it stays here, {}", container.name,
                                     paused ? "was paused" : "ended", now->status),
                 .during = {}};
  }
  if (now && now->pid != container.pid) {
    return Error{
        .kind = Kind::invalid,
        .what = fmt::format("container {} was started anew while it was being moved; it stays here", container.name),
        .during = {}};
  }
  return error;
}

}  // namespace

Result<SendReport> send(const SendOptions& options) {
  FERRY_TRY(Guard guard, Guard::post(clean_up_after));
  tracee::block_sigchld();
  ::signal(SIGPIPE, SIG_IGN);
  const HeldBack held;
  FERRY_TRY(Docker docker, Docker::connect());
  FERRY_TRY(Departure departure, Departure::prepare(docker, {.container = options.container,
                                                             .drop_exec = options.drop_exec,
                                                             .keep_source = options.keep_source,
                                                             .volumes = options.volumes}));
  FERRY_TRY(Logbook book, open_logbook(options, departure));
  FERRY_CHECK(guard.tell("move " + book.entry().move));
  book.step(Step::look);
  const auto moved = [&]() -> Result<SendReport> {
    FERRY_CHECK(container::wait_for_health_check(docker, departure.container(), std::chrono::seconds(60)));
    FERRY_TRY(RemoteShell shell, RemoteShell::start(options.rsh, options.destination, {"ferry", "receive"}));
    return Sender(options, docker, departure, book, shell, held.fd()).run();
  };
  auto report = moved();
  if (!report) {
    if (auto back = departure.resume_restarts(); !back) {
      // Not the end of it: the guard goes on trying.
      log::warning("{}", back.error().message());
      return report;
    }
    const Error error = what_the_user_did(docker, departure.container(), std::move(report).error());
    book.close(Outcome::stayed, error.message());
    guard.dismiss();
    return tl::unexpected<Error>(error);
  }
  book.close(Outcome::moved);
  guard.dismiss();
  report->container = departure.container().name;
  report->notes.insert(report->notes.begin(), departure.notes().begin(), departure.notes().end());
  return report;
}

}  // namespace ferry::migrate
