#include "migrate/cancel.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "container/docker.h"
#include "migrate/record.h"
#include "migrate/settle.h"
#include "sys/file.h"

namespace ferry::migrate {
namespace {

constexpr std::chrono::seconds kEndLimit(60);  // the twin is removed meanwhile
constexpr std::chrono::milliseconds kPoll(50);
constexpr std::size_t kShortest = 4;  // of the beginning of an id

bool is_meant(const Entry& entry, const std::string& wanted) {
  const bool begins =
      wanted.size() >= kShortest && (entry.move.starts_with(wanted) || entry.container_id.starts_with(wanted));
  return entry.move == wanted || entry.container_name == wanted || begins;
}

Error too_late(const Entry& entry) {
  return Error{.kind = Kind::invalid,
               .what = fmt::format("it is too late to cancel the move of container {}: it was given to {}",
                                   entry.container_name, entry.peer),
               .during = {}};
}

// A process in place of a number that may be used again.
Result<UniqueFd> ferry_of(const Entry& entry) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, entry.pid, 0)));
  if (!pidfd || !is_at_work(entry)) {
    return fail(Kind::gone, "process {} has ended", entry.pid);
  }
  return pidfd;
}

Result<void> end_process(int pidfd, const Entry& entry) {
  if (::syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, nullptr, 0) != 0 && errno != ESRCH) {
    return sys_fail(fmt::format("pidfd_send_signal({}, SIGTERM)", entry.pid));
  }
  pollfd ended{.fd = pidfd, .events = POLLIN, .revents = 0};
  const auto limit = static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(kEndLimit).count());
  if (::poll(&ended, 1, limit) <= 0) {
    return fail(Kind::os, "ferry (process {}) was told to end the move of container {}, and still runs after {} s",
                entry.pid, entry.container_name, kEndLimit.count());
  }
  return {};
}

// Whoever comes first: the guard that the move had, or we.
Result<Entry> wait_until_settled(const Entry& entry) {
  const auto end = std::chrono::steady_clock::now() + kEndLimit;
  for (;;) {
    FERRY_TRY(Entry now, read_entry(entry.move, entry.role));
    if (now.ended != 0) {
      return now;
    }
    const auto settled = settle(entry.move, entry.role);
    if (!settled && std::chrono::steady_clock::now() > end) {
      return tl::unexpected<Error>(settled.error());
    }
    if (!settled) {
      std::this_thread::sleep_for(kPoll);
    }
  }
}

Result<void> check_it_runs(const Entry& entry) {
  if (!entry.docker_host.empty()) {
    ::setenv("DOCKER_HOST", entry.docker_host.c_str(), 1);
  }
  FERRY_TRY(container::Docker docker, container::Docker::connect());
  FERRY_TRY(const auto container, docker.container(entry.container_id));
  if (!container.running()) {
    return fail(Kind::gone, "the move was cancelled, but container {} does not run: it is {}", entry.container_name,
                container.status);
  }
  const auto state = sys::read_file(entry.freeze_cgroup + "/freezer.state");
  if (state.has_value() && !state->starts_with("THAWED")) {
    return fail(Kind::os, "the move was cancelled, but container {} is frozen", entry.container_name);
  }
  return {};
}

}  // namespace

Result<Entry> find_move(const std::string& wanted) {
  FERRY_TRY(const auto all, entries());
  const Entry* found = nullptr;
  const Entry* ended = nullptr;
  for (const Entry& entry : all) {
    if (!is_meant(entry, wanted)) {
      continue;
    }
    if (entry.ended != 0) {
      ended = &entry;
      continue;
    }
    if (found != nullptr) {
      return fail(Kind::invalid, "\"{}\" means more than one move: give the id, as ferry ps shows it", wanted);
    }
    found = &entry;
  }
  if (found != nullptr) {
    return *found;
  }
  if (ended != nullptr) {
    return fail(Kind::gone, "the move of container {} has ended already: it {}", ended->container_name,
                std::string_view(ended->outcome == Outcome::moved ? "moved" : "stayed where it was"));
  }
  return fail(Kind::gone, "this host knows no move of that id or container: \"{}\"", wanted);
}

Result<std::string> cancel(const Entry& entry) {
  const bool source = entry.role == Role::source;
  const auto given_away = [&]() -> Result<bool> {
    if (source) {
      return read_given(entry.move).has_value() || entry.outcome == Outcome::moved;
    }
    FERRY_TRY(const auto decision, decision_of(entry.move));
    return decision == Decision::taken;
  };
  FERRY_TRY(const bool late, given_away());
  if (late) {
    return tl::unexpected<Error>(too_late(entry));
  }
  if (auto ferry = ferry_of(entry); ferry.has_value()) {
    FERRY_CHECK(end_process(ferry->get(), entry));
  }
  FERRY_TRY(const Entry now, wait_until_settled(entry));
  if (now.outcome == Outcome::moved) {
    return tl::unexpected<Error>(too_late(entry));
  }
  if (!source) {
    return fmt::format("container {} does not come here; it stays on {}", entry.container_name, entry.peer);
  }
  FERRY_CHECK(check_it_runs(now));
  return fmt::format("container {} does not move to {}; it runs on here", entry.container_name, entry.peer);
}

}  // namespace ferry::migrate
