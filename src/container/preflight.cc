#include "container/preflight.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/unique_fd.h"
#include "container/containerd.h"
#include "container/json_log.h"

namespace ferry::container {
namespace {

Result<std::vector<ExecSession>> running_sessions(Docker& docker, const Container& container) {
  std::vector<ExecSession> out;
  for (const std::string& id : container.exec_ids) {
    auto session = docker.exec(id);
    if (!session && session.error().kind == Kind::gone) {
      continue;  // ended since it was listed
    }
    FERRY_CHECK(session);
    if (session->running) {
      out.push_back(std::move(*session));
    }
  }
  return out;
}

std::string with_pid(const ExecSession& session) {
  return fmt::format("\"{}\" (pid {})", session.command, session.pid);
}

}  // namespace

Result<void> check_running(const Container& container) {
  if (container.running()) {
    return {};
  }
  if (container.status == "paused") {
    return fail(Kind::invalid, "container {} is paused: docker unpause it first", container.name);
  }
  if (container.status == "restarting") {
    return fail(Kind::invalid, "container {} is restarting: find out why it ends, or wait until it runs",
                container.name);
  }
  return fail(Kind::invalid, "container {} is not running (it is {}): start it first", container.name,
              container.status);
}

bool is_health_probe(const Container& container, const ExecSession& session) {
  const auto& probe = container.health_probe;
  if (probe.size() < 2) {
    return false;
  }
  std::string command;
  if (probe.front() == "CMD-SHELL") {
    command = "/bin/sh -c " + probe[1];
  } else if (probe.front() == "CMD") {
    for (std::size_t i = 1; i < probe.size(); ++i) {
      command += (i == 1 ? "" : " ") + probe[i];
    }
  }
  return session.command == command;
}

Result<std::vector<Finding>> examine_source(Docker& docker, const Container& container,
                                            const PreflightOptions& options) {
  std::vector<Finding> out;
  FERRY_TRY(const auto sessions, running_sessions(docker, container));
  for (const ExecSession& session : sessions) {
    if (is_health_probe(container, session)) {
      continue;
    }
    const std::string what =
        fmt::format("docker exec session {} runs in container {}", with_pid(session), container.name);
    if (options.drop_exec) {
      out.push_back({false, what + " and is not kept, as --drop-exec allows"});
    } else {
      out.push_back({true, what + " and would be lost: end it, or say --drop-exec"});
    }
  }
  if (container.privileged) {
    out.push_back(
        {false, fmt::format("container {} is privileged: what it changed on the host itself is not carried over",
                            container.name)});
  }
  if (!container.runtime.empty() && container.runtime != "runc" && container.runtime != "io.containerd.runc.v2") {
    out.push_back({true, fmt::format("container {} runs under the runtime {}: only runc is supported", container.name,
                                     container.runtime)});
  }
  if (container.storage_driver != "overlay2") {
    out.push_back(
        {true,
         fmt::format(
             "container {} uses the storage driver {}: only overlay2 is supported, because the writable layer is read from its upper directory",
             container.name, container.storage_driver)});
  }
  if (options.moving && !can_continue_log(container.log_driver)) {
    out.push_back(
        {true,
         fmt::format(
             "the log of container {} is kept by the driver {}, which cannot be continued on another host: only json-file and none can",
             container.name, container.log_driver)});
  }
  if (container.foreground) {
    out.push_back(
        {false,
         fmt::format(
             "container {} was started in the foreground (docker run without -d): a client that is still attached is cut off",
             container.name)});
  }
  if (options.moving && !docker.info().live_restore) {
    out.push_back(
        {false,
         "the Docker daemon runs without live-restore: restarting it ends every container, also a frozen one (set \"live-restore\": true in daemon.json)"});
  }
  return out;
}

Result<void> check_experimental(const Docker& docker) {
  if (!docker.info().experimental) {
    return fail(
        Kind::unsupported,
        "the Docker daemon restores checkpoints only with its experimental features: set \"experimental\": true in /etc/docker/daemon.json and restart it");
  }
  return {};
}

std::vector<Finding> examine_restoring_daemon(const Docker& docker) {
  std::vector<Finding> out;
  if (auto experimental = check_experimental(docker); !experimental) {
    out.push_back({true, experimental.error().message()});
  }
  if (const std::string obstacle = criu_obstacle(docker.api()); !obstacle.empty()) {
    out.push_back({true, obstacle});
  }
  return out;
}

Result<void> wait_for_health_check(Docker& docker, const Container& container, std::chrono::seconds limit) {
  FERRY_TRY(const auto sessions, running_sessions(docker, container));
  for (const ExecSession& session : sessions) {
    if (!is_health_probe(container, session) || session.pid.value <= 0) {
      continue;
    }
    const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, session.pid.value, 0)));
    if (!pidfd) {
      if (errno == ESRCH) {
        continue;
      }
      return sys_fail(fmt::format("pidfd_open({})", session.pid));
    }
    pollfd wanted{.fd = pidfd.get(), .events = POLLIN, .revents = 0};
    const auto limit_ms = std::chrono::duration_cast<std::chrono::milliseconds>(limit).count();
    const int ready = ::poll(&wanted, 1, static_cast<int>(limit_ms));
    if (ready < 0) {
      return sys_fail(fmt::format("poll(pidfd of {})", session.pid));
    }
    if (ready == 0) {
      return fail(Kind::invalid, "the health check {} of container {} did not end within {} s", with_pid(session),
                  container.name, limit.count());
    }
  }
  return {};
}

Result<void> refuse(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& finding : findings) {
    if (finding.refuses) {
      text += (text.empty() ? "" : "; ") + finding.text;
    }
  }
  if (!text.empty()) {
    return fail(Kind::unsupported, "{}", text);
  }
  return {};
}

}  // namespace ferry::container
