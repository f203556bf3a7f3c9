#include "migrate/doubt.h"

#include <stdlib.h>

#include <memory>

#include "container/docker.h"
#include "migrate/door.h"
#include "migrate/freezer.h"
#include "migrate/hello.h"
#include "migrate/link.h"
#include "migrate/mend.h"
#include "migrate/message.pb.h"
#include "migrate/post_copy_line.h"
#include "migrate/post_copy_supply.h"
#include "migrate/remote_shell.h"
#include "migrate/revival.h"

namespace ferry::migrate {
namespace {

constexpr std::chrono::seconds kAnswerLimit(60);
constexpr std::chrono::seconds kStopLimit(60);

Result<container::Docker> docker_of(const GivenRecord& record) {
  if (!record.docker_host.empty()) {
    ::setenv("DOCKER_HOST", record.docker_host.c_str(), 1);
  }
  return container::Docker::connect();
}

}  // namespace

Result<Decision> ask(const std::string& rsh, const std::string& destination, const std::string& move) {
  FERRY_TRY(const Fate fate, ask_fate(rsh, destination, move));
  return fate.decision;
}

Result<Fate> ask_fate(const std::string& rsh, const std::string& destination, const std::string& move) {
  const std::string detour = read_detour(move);
  FERRY_TRY(RemoteShell shell, RemoteShell::start(rsh, detour.empty() ? destination : detour, {"ferry", "receive"}));
  Link link(shell.take_output(), shell.take_input(), -1, destination);
  FERRY_TRY(const HostFacts facts, facts_of_this_host());
  FERRY_CHECK(send_hello(link, facts));
  FERRY_CHECK(receive_hello(link, kAnswerLimit));
  wire::Message question;
  question.mutable_ask()->set_move(move);
  FERRY_CHECK(link.send(question));
  wire::Message answer;
  FERRY_CHECK(link.receive(answer, kAnswerLimit));
  if (answer.has_taken()) {
    return Fate{.decision = Decision::taken, .lost = answer.taken().lost()};
  }
  if (answer.has_refused()) {
    return Fate{};
  }
  return fail(Kind::corrupt, "{} does not answer what became of move {}", destination, move);
}

Result<void> serve_rest(const GivenRecord& record) {
  auto supply = PostCopySupply::of_frozen(record.freeze_cgroup);
  const bool gone = !supply && supply.error().kind == Kind::gone;
  if (!supply && !gone) {
    return tl::unexpected<Error>(std::move(supply).error());
  }
  // Whoever ended the processes knew that the destination had everything, or this host was started anew.
  const std::unique_ptr<PostCopySupply> nothing = gone ? std::make_unique<PostCopySupply>(false) : nullptr;
  PostCopyLine line({record.move, record.destination, record.rsh, {}}, gone ? *nothing : **supply);
  FERRY_CHECK(line.open());
  FERRY_CHECK(line.wait([&](const PostCopyLine::Standing& standing) -> Result<void> {
    if (!standing.connected && revival_is_wished(record.move)) {
      return fail(Kind::gone, "{} is not reached, and the user wants container {} to run on here", record.destination,
                  record.container_name);
    }
    if (!gone) {
      return {};
    }
    return fail(
        Kind::gone,
        "the processes of container {} are gone here, and with them memory that {} has not fetched: the container waits there for "
        "pages that nobody has any more.  End it there; nothing can bring it back but a checkpoint",
        record.container_name, record.destination);
  }));
  forget_detour(record.move);
  return {};
}

// First what needs no daemon: a frozen process may be killed at any time.
Result<void> end_source(container::Docker& docker, const GivenRecord& record) {
  FERRY_CHECK(kill_frozen(record.freeze_cgroup));
  const auto container = docker.container(record.container_id);
  if (!container && container.error().kind == Kind::gone) {
    return {};
  }
  FERRY_CHECK(container);
  if (container->running()) {
    FERRY_CHECK(docker.wait_until_stopped(record.container_id, kStopLimit));
  }
  if (record.keep_source) {
    return {};
  }
  auto removed = docker.remove(record.container_id);
  return !removed && removed.error().kind == Kind::gone ? Result<void>() : std::move(removed);
}

Result<void> let_run_on(const std::string& freeze_cgroup) {
  FERRY_TRY(const auto pids, members(freeze_cgroup));
  if (pids.empty()) {
    return {};
  }
  // Frozen, so that no program finds a connection that does not work.
  FERRY_CHECK(freeze(freeze_cgroup));
  const auto mended = mend_connections(freeze_cgroup, Mend::go_on);
  const auto opened = reopen_door_of(pids.front());
  FERRY_CHECK(thaw(freeze_cgroup));
  FERRY_CHECK(mended);
  return opened;
}

Result<std::string> act(const GivenRecord& record, Decision decision) {
  std::string sentence;
  if (decision == Decision::taken) {
    if (record.post_copy) {
      FERRY_CHECK(
          serve_rest(record).during("giving {} the memory of container {}", record.destination, record.container_name));
    }
    FERRY_TRY(container::Docker docker, docker_of(record));
    FERRY_CHECK(end_source(docker, record).during("ending container {} here", record.container_name));
    sentence = fmt::format("container {} runs on {}; it was ended here", record.container_name, record.destination);
  } else {
    FERRY_CHECK(let_run_on(record.freeze_cgroup));
    if (!record.restart_policy.empty() && record.restart_policy != "no") {
      FERRY_TRY(container::Docker docker, docker_of(record));
      FERRY_CHECK(docker.set_restart_policy(record.container_id, {record.restart_policy, record.restart_retries}));
    }
    sentence =
        fmt::format("container {} did not move to {}; it runs on here", record.container_name, record.destination);
  }
  forget_given(record.move);
  return sentence;
}

}  // namespace ferry::migrate
