#include "container/containerd.h"

#include <dirent.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>

#include "base/unique_fd.h"
#include "container/run_program.h"
#include "container/small_file.h"

namespace ferry::container {
namespace {

// containerd adds this to its own PATH at its start (its plugin "opt"), where /proc/PID/environ, which
// shows the environment at exec, does not tell.
constexpr const char* kOptPath = "/opt/containerd/bin";
constexpr const char* kSystemSocket = "/run/containerd/containerd.sock";

std::string comm_of(HostPid pid) {
  auto comm = read_small_file(fmt::format("/proc/{}/comm", pid));
  if (!comm) {
    return {};
  }
  while (comm->ends_with('\n')) {
    comm->pop_back();
  }
  return *comm;
}

pid_t parent_of(HostPid pid) {
  const auto status = read_small_file(fmt::format("/proc/{}/status", pid));
  if (!status) {
    return -1;
  }
  const auto at = status->find("\nPPid:");
  return at == std::string::npos ? -1 : static_cast<pid_t>(std::atoi(status->c_str() + at + 6));
}

// A dockerd without --containerd starts one as its child.
Result<HostPid> child_containerd(HostPid dockerd) {
  const std::unique_ptr<DIR, int (*)(DIR*)> proc(::opendir("/proc"), &::closedir);
  if (!proc) {
    return sys_fail("opendir(/proc)");
  }
  while (const dirent* entry = ::readdir(proc.get())) {
    const HostPid pid(static_cast<pid_t>(std::atoi(entry->d_name)));
    if (pid.value > 0 && comm_of(pid) == "containerd" && parent_of(pid) == dockerd.value) {
      return pid;
    }
  }
  return fail(Kind::gone, "process {} has no containerd", dockerd);
}

std::string own_directory() {
  std::error_code failed;
  const auto exe = std::filesystem::read_symlink("/proc/self/exe", failed);
  return failed ? std::string("ferry's bin directory") : exe.parent_path().string();
}

std::string advice(HostPid containerd) {
  const auto cgroup = read_small_file(fmt::format("/proc/{}/cgroup", containerd));
  const std::string unit = cgroup ? unit_of_cgroup(*cgroup) : std::string();
  const std::string directory = own_directory();
  if (unit.empty()) {
    return fmt::format("start the Docker daemon with {} first on its PATH", directory);
  }
  return fmt::format("put {} first on its PATH (systemctl edit {}, Environment=PATH={}:{}) and restart it", directory,
                     unit, directory, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
}

}  // namespace

Result<HostPid> listener_of(const std::string& socket_path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_path.size() >= sizeof address.sun_path) {
    return fail(Kind::invalid, "the socket path {} is too long", socket_path);
  }
  std::memcpy(address.sun_path, socket_path.data(), socket_path.size());
  const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return sys_fail(fmt::format("connect({})", socket_path));
  }
  // unix(7): the credentials are those of the process that called listen(2).
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return sys_fail(fmt::format("getsockopt({}, SO_PEERCRED)", socket_path));
  }
  return HostPid(peer.pid);
}

Result<HostPid> find_containerd(const DockerApi& api) {
  FERRY_TRY(const HostPid dockerd, listener_of(api.socket_path()));
  if (auto child = child_containerd(dockerd)) {
    return child;
  }
  auto system = listener_of(kSystemSocket);
  if (!system) {
    return fail(Kind::gone, "no containerd was found: neither below the Docker daemon (pid {}) nor at {}", dockerd,
                kSystemSocket);
  }
  return system;
}

std::string path_of_environ(std::string_view environ_text) {
  while (!environ_text.empty()) {
    const auto end = std::min(environ_text.find('\0'), environ_text.size());
    const std::string_view entry = environ_text.substr(0, end);
    if (entry.starts_with("PATH=")) {
      return std::string(entry.substr(5));
    }
    environ_text.remove_prefix(std::min(end + 1, environ_text.size()));
  }
  return {};
}

std::string unit_of_cgroup(std::string_view cgroup_file) {
  const auto end = cgroup_file.find(".service");
  if (end == std::string_view::npos) {
    return {};
  }
  const auto start = cgroup_file.rfind('/', end);
  return std::string(cgroup_file.substr(start + 1, end - start - 1)) + ".service";
}

Result<CriuOnPath> criu_of(HostPid containerd) {
  FERRY_TRY(const std::string environ_text, read_small_file(fmt::format("/proc/{}/environ", containerd)));
  const std::string path = path_of_environ(environ_text);
  std::string rest = std::string(kOptPath) + ":" + path + ":";
  while (!rest.empty()) {
    const auto colon = rest.find(':');
    const std::string directory = rest.substr(0, colon);
    rest.erase(0, colon + 1);
    const std::string program = directory + "/criu";
    const std::string from_here = fmt::format("/proc/{}/root{}", containerd, program);
    if (directory.empty() || ::access(from_here.c_str(), X_OK) != 0) {
      continue;
    }
    FERRY_TRY(const ProgramOutput output, run_program({from_here, "--version"}, std::chrono::seconds(10)));
    return CriuOnPath{.path = program,
                      .version = output.text,
                      .ours = output.status == 0 && output.text.find("ferry") != std::string::npos};
  }
  return fail(Kind::gone, "containerd (pid {}) finds no criu on its PATH ({}): {}", containerd, path,
              advice(containerd));
}

std::string criu_obstacle(const DockerApi& api) {
  const auto containerd = find_containerd(api);
  if (!containerd) {
    return containerd.error().message();
  }
  const auto criu = criu_of(*containerd);
  if (!criu) {
    return criu.error().message();
  }
  if (!criu->ours) {
    const std::string first_line = criu->version.substr(0, criu->version.find('\n'));
    return fmt::format("containerd (pid {}) finds {} ({}), which is not ferry's: {}", *containerd, criu->path,
                       first_line.empty() ? "it does not tell its version" : first_line, advice(*containerd));
  }
  return {};
}

Result<void> check_visible(HostPid containerd, const std::string& path) {
  struct stat here {};
  struct stat there {};
  if (::stat(path.c_str(), &here) != 0) {
    return sys_fail(fmt::format("stat({})", path));
  }
  if (::stat(fmt::format("/proc/{}/root{}", containerd, path).c_str(), &there) != 0 || here.st_dev != there.st_dev ||
      here.st_ino != there.st_ino) {
    return fail(
        Kind::invalid,
        "containerd (pid {}) does not see {}, perhaps because it has a private /tmp: move the checkpoint to another directory",
        containerd, path);
  }
  return {};
}

}  // namespace ferry::container
