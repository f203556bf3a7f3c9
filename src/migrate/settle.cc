#include "migrate/settle.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "base/log.h"
#include "container/docker.h"
#include "container/move_target.h"
#include "migrate/announce.h"
#include "migrate/door.h"
#include "migrate/doubt.h"
#include "migrate/freezer.h"
#include "migrate/mend.h"
#include "migrate/revival.h"
#include "migrate/throttle.h"

namespace ferry::migrate {
namespace {

using container::Docker;

constexpr std::chrono::hours kPatience(24);
constexpr std::chrono::seconds kBetween(2);

Result<Docker> docker_of(const Entry& entry) {
  if (!entry.docker_host.empty()) {
    ::setenv("DOCKER_HOST", entry.docker_host.c_str(), 1);
  }
  return Docker::connect();
}

// No more than is needed: where it was not suspended, the user may have changed it.
Result<void> give_policy_back(Docker& docker, const Entry& entry) {
  if (!entry.restarts_suspended) {
    return {};
  }
  auto given = docker.set_restart_policy(entry.container_id, {entry.restart_policy, entry.restart_retries});
  return !given && given.error().kind == Kind::gone ? Result<void>() : std::move(given);
}

void forget_lock(const std::string& move) { ::unlink(fmt::format("{}/{}.lock", kMovesDirectory, move).c_str()); }

Result<std::string> end(Entry entry, Outcome outcome, std::string sentence) {
  entry.outcome = outcome;
  entry.in_doubt = false;
  entry.reason = sentence;
  entry.ended =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  entry.changed = entry.ended;
  FERRY_CHECK(save_entry(entry, false));
  return sentence;
}

// It was never given away, so it goes on here.  First what needs no daemon.
Result<std::string> keep_source(const Entry& entry) {
  FERRY_CHECK(let_run_on(entry.freeze_cgroup));
  if (!entry.processor_quota.empty()) {
    if (auto lifted = Throttle::carry_out(entry.processor_quota); !lifted && lifted.error().kind != Kind::gone) {
      return tl::unexpected<Error>(std::move(lifted).error());
    }
  }
  if (entry.restarts_suspended) {
    FERRY_TRY(Docker docker, docker_of(entry));
    FERRY_CHECK(give_policy_back(docker, entry));
  }
  return end(entry, Outcome::stayed,
             fmt::format("container {} did not move to {}; it stays here", entry.container_name, entry.peer));
}

Result<std::string> settle_source(const Entry& entry) {
  const auto given = read_given(entry.move);
  if (!given && given.error().kind != Kind::gone) {
    return tl::unexpected<Error>(given.error());
  }
  if (given.has_value() && revival_is_wished(entry.move)) {
    FERRY_TRY(std::string sentence, revive(*given));
    return end(entry, Outcome::stayed, std::move(sentence));
  }
  if (given.has_value()) {
    FERRY_TRY(const Decision decision, ask(given->rsh, given->destination, given->move));
    FERRY_TRY(std::string sentence, act(*given, decision));
    return end(entry, decision == Decision::taken ? Outcome::moved : Outcome::stayed, std::move(sentence));
  }
  if (entry.outcome != Outcome::moved) {
    return keep_source(entry);
  }
  FERRY_TRY(Docker docker, docker_of(entry));
  GivenRecord left;
  left.container_id = entry.container_id;
  left.freeze_cgroup = entry.freeze_cgroup;
  left.keep_source = entry.keep_source;
  FERRY_CHECK(end_source(docker, left));
  return end(
      entry, Outcome::moved,
      fmt::format("container {} runs on {}; what was left of it here is removed", entry.container_name, entry.peer));
}

// It was taken: nobody else has it.
Result<std::string> keep_twin(const Entry& entry) {
  const auto pids = members(entry.freeze_cgroup);
  if (pids.has_value() && !pids->empty()) {
    FERRY_TRY(const int lost, mend_connections(entry.freeze_cgroup, Mend::reset));
    if (lost > 0) {
      log::warning("{} connections of container {} were reset: what they had to send was lost with ferry", lost,
                   entry.container_name);
    }
    FERRY_CHECK(reopen_door_of(pids->front()));
    FERRY_CHECK(thaw(entry.freeze_cgroup));
    if (auto announced = announce_addresses(pids->front()); !announced) {
      log::warning("{}", announced.error().message());
    }
  }
  if (auto forgotten = container::forget_aside(entry.put_aside, entry.move); !forgotten) {
    log::warning("{}", forgotten.error().message());
  }
  if (entry.restarts_suspended) {
    FERRY_TRY(Docker docker, docker_of(entry));
    FERRY_CHECK(give_policy_back(docker, entry));
  }
  return end(entry, Outcome::moved,
             fmt::format("container {} came from {} and runs here", entry.container_name, entry.peer));
}

// It was taken, and nobody can bring the rest of its memory any more: with zeros in its place it must not run.
Result<std::string> end_twin(const Entry& entry) {
  FERRY_CHECK(freeze(entry.freeze_cgroup));
  FERRY_CHECK(kill_frozen(entry.freeze_cgroup));
  return end(
      entry, Outcome::moved,
      fmt::format(
          "container {} had to be ended: the ferry that fetched its memory from {} was ended before all of it was here; "
          "what is left of it stands frozen there",
          entry.container_name, entry.peer));
}

Result<std::string> settle_destination(const Entry& entry) {
  ::unlink(fmt::format("/run/ferry/{}.sock", entry.move).c_str());
  // Before the twin can do anything; the shim keeps what it was told.
  const auto let_shim_go = [&] {
    if (entry.shim > 0) {
      ::kill(entry.shim, SIGCONT);
    }
  };
  FERRY_TRY(const Decision decision, decide(entry.move, Decision::refused));
  if (decision == Decision::taken) {
    let_shim_go();
    return entry.pages_due ? end_twin(entry) : keep_twin(entry);
  }
  if (!entry.freeze_cgroup.empty()) {
    FERRY_CHECK(kill_frozen(entry.freeze_cgroup));
  }
  let_shim_go();
  if (!entry.container_id.empty()) {
    FERRY_TRY(Docker docker, docker_of(entry));
    auto discarded = container::discard_twin(docker, entry.container_id);
    if (!discarded && discarded.error().kind != Kind::gone) {
      return tl::unexpected<Error>(std::move(discarded).error());
    }
  }
  if (!entry.volumes_made.empty() || !entry.put_aside.empty()) {
    FERRY_TRY(Docker docker, docker_of(entry));
    FERRY_CHECK(container::undo_volumes(docker, entry.volumes_made, entry.put_aside, entry.move));
  }
  return end(entry, Outcome::stayed,
             fmt::format("container {} did not come from {}; its twin is removed", entry.container_name, entry.peer));
}

}  // namespace

Result<std::string> settle(const std::string& move, Role role) {
  FERRY_TRY(const UniqueFd lock, lock_move(move));
  auto entry = read_entry(move, role);
  if (!entry && entry.error().kind == Kind::gone) {
    forget_lock(move);
    return fail(Kind::gone, "this host knows no move {}", move);
  }
  FERRY_CHECK(entry);
  if (entry->ended == 0 && is_at_work(*entry)) {
    return fail(Kind::invalid, "the move of container {} is in the hands of process {}, which still runs",
                entry->container_name, entry->pid);
  }
  auto settled = entry->ended != 0      ? Result<std::string>(entry->reason)
                 : role == Role::source ? settle_source(*entry)
                                        : settle_destination(*entry);
  forget_lock(move);
  return settled;
}

void settle_patiently(const std::string& move, Role role) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < end) {
    const auto settled = settle(move, role);
    const auto entry = read_entry(move, role);
    if (settled || !entry || entry->ended != 0) {
      return;
    }
    std::this_thread::sleep_for(kBetween);  // until the other host, or Docker, may be there again
  }
}

Result<std::vector<Unsettled>> unsettled() {
  std::vector<Unsettled> out;
  FERRY_TRY(const auto all, entries());
  for (const Entry& entry : all) {
    if (entry.ended == 0 && !is_at_work(entry)) {
      out.push_back({entry.move, entry.role, entry.container_name, entry.peer});
    }
  }
  return out;
}

}  // namespace ferry::migrate
