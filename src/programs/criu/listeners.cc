#include "programs/criu/listeners.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "base/log.h"
#include "base/unique_fd.h"
#include "rpc.pb.h"

namespace ferry::criu {
namespace {

constexpr const char* kCallerGone = "the caller closed the RPC socket before the operation was done";

// The environment of a script: ours and what it is told.
std::vector<std::string> script_environment(std::string_view stage, int images_dir, HostPid root) {
  std::vector<std::string> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!std::string_view{*variable}.starts_with("CRTOOLS_")) {
      environment.emplace_back(*variable);
    }
  }
  environment.push_back(fmt::format("CRTOOLS_SCRIPT_ACTION={}", stage));
  environment.push_back(fmt::format("CRTOOLS_IMAGE_DIR=/proc/{}/fd/{}", ::getpid(), images_dir));
  if (root.value > 0) {
    environment.push_back(fmt::format("CRTOOLS_INIT_PID={}", root));
  }
  return environment;
}

// Runs one program without arguments to its end.  The value is its exit status; 128 and more for a
// signal, as a shell has it.
Result<int> run_script(const std::string& script, std::vector<std::string> environment) {
  std::vector<char*> envp;
  for (std::string& variable : environment) {
    envp.push_back(variable.data());
  }
  envp.push_back(nullptr);
  std::string name = script;
  char* argv[] = {name.data(), nullptr};
  posix_spawnattr_t attributes{};
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t child = 0;
  const int spawned = ::posix_spawnp(&child, script.c_str(), nullptr, &attributes, argv, envp.data());
  posix_spawnattr_destroy(&attributes);
  if (spawned != 0) {
    return sys_fail(spawned, fmt::format("starting {}", script));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) {
      return sys_fail(fmt::format("waitpid({})", child));
    }
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Result<engine::Answer> RpcListener::on(const engine::Notice& notice) {
  if (!notify_) {
    if (channel_.hung_up()) {
      return fail(Kind::gone, "{}", kCallerGone);
    }
    return engine::Answer{};
  }
  const std::string_view stage = engine::stage_name(notice.stage);
  rpc::criu_resp message;
  message.set_type(rpc::NOTIFY);
  message.set_success(true);
  message.mutable_notify()->set_script(std::string(stage));
  if (notice.pid.has_value()) {
    message.mutable_notify()->set_pid(notice.pid->value);
  }
  FERRY_CHECK(channel_.send(message.SerializeAsString(), notice.fd).during("notifying the caller of {}", stage));
  FERRY_TRY(const std::optional<std::string> packet,
            channel_.receive().during("waiting for the caller's answer to {}", stage));
  if (!packet.has_value()) {
    return fail(Kind::gone, "{}: no answer to {}", kCallerGone, stage);
  }
  rpc::criu_req answer;
  // Partial, because opts may come without images_dir_fd here, of which there is no use.
  if (!answer.ParsePartialFromString(*packet) || answer.type() != rpc::NOTIFY) {
    return fail(Kind::corrupt, "the caller's answer to {} is no NOTIFY message", stage);
  }
  if (!answer.notify_success()) {
    return fail(Kind::os, "the caller said no at {}", stage);
  }
  engine::Answer result;
  if (notice.stage == engine::Stage::query_ext_files) {
    result.external.assign(answer.opts().external().begin(), answer.opts().external().end());
  }
  return result;
}

ActionScripts::ActionScripts(std::vector<std::string> scripts, int images_dir, HostPid root)
    : scripts_(std::move(scripts)), images_dir_(images_dir), root_(root) {}

Result<engine::Answer> ActionScripts::on(const engine::Notice& notice) {
  if (notice.pid.has_value()) {
    root_ = *notice.pid;
  }
  if (scripts_.empty() || notice.stage == engine::Stage::query_ext_files) {
    return engine::Answer{};
  }
  const std::string_view stage = engine::stage_name(notice.stage);
  const auto environment = script_environment(stage, images_dir_, root_);
  int together = 0;
  std::string culprit;
  for (const std::string& script : scripts_) {
    log::info("running action script {} for {}", script, stage);
    FERRY_TRY(const int status, run_script(script, environment).during("running the action scripts of {}", stage));
    if (status != 0 && together == 0) {
      culprit = script;
    }
    together |= status;
  }
  if (together == 0) {
    return engine::Answer{};
  }
  if (failed_status_ == 0) {
    failed_status_ = together;
  }
  return fail(Kind::os, "action script {} said no at {} with status {}", culprit, stage, together);
}

Result<engine::Answer> StatusFd::on(const engine::Notice& notice) {
  if (notice.stage != engine::Stage::status_ready || fd_ < 0) {
    return engine::Answer{};
  }
  const char zero = 0;
  if (::write(fd_, &zero, 1) != 1) {
    return sys_fail(fmt::format("write(status fd {})", fd_));
  }
  ::close(std::exchange(fd_, -1));
  return engine::Answer{};
}

PidFile::~PidFile() {
  if (written_) {
    ::unlinkat(work_dir_, path_.c_str(), 0);
  }
}

Result<engine::Answer> PidFile::on(const engine::Notice& notice) {
  if (path_.empty() || notice.stage != engine::Stage::post_restore || !notice.pid.has_value()) {
    return engine::Answer{};
  }
  const UniqueFd file{::openat(work_dir_, path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
  if (!file) {
    return sys_fail(fmt::format("openat({})", path_));
  }
  written_ = true;
  const std::string text = fmt::format("{}", *notice.pid);
  if (::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return sys_fail(fmt::format("write({})", path_));
  }
  return engine::Answer{};
}

Result<engine::Answer> Listeners::on(const engine::Notice& notice) {
  if (notice.pid.has_value()) {
    root_ = notice.pid->value;
  }
  engine::Answer together;
  for (engine::Listener* const listener : listeners_) {
    FERRY_TRY(const engine::Answer answer, listener->on(notice));
    together.external.insert(together.external.end(), answer.external.begin(), answer.external.end());
  }
  return together;
}

}  // namespace ferry::criu
