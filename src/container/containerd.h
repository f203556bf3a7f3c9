// The containerd below a Docker daemon: which process it is, and which criu its containers get.
//
// containerd starts the shim, the shim runc, and runc looks criu up on the PATH it inherited; so it is
// containerd's environment that decides, and in most installations containerd is a service of its own.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "base/ids.h"
#include "container/docker_api.h"

namespace ferry::container {

// The containerd that serves this daemon.  Errors: gone if none is found.
Result<HostPid> find_containerd(const DockerApi& api);

// The process that listens on a Unix socket.
Result<HostPid> listener_of(const std::string& socket_path);

struct CriuOnPath {
  std::string path;     // as containerd sees it
  std::string version;  // the first lines of --version
  bool ours = false;
};
// Errors: gone if there is none on its PATH; the text names PATH and what to do.
Result<CriuOnPath> criu_of(HostPid containerd);

// One sentence if containers of this daemon would not be restored by ferry's criu; empty if all is well.
std::string criu_obstacle(const DockerApi& api);

// Whether `path` names the same directory for containerd as for us; it may have a /tmp of its own.
Result<void> check_visible(HostPid containerd, const std::string& path);

// PATH of an environment as /proc/PID/environ shows it: entries end in NUL.
std::string path_of_environ(std::string_view environ);
// "containerd.service" of a /proc/PID/cgroup; empty if the process is in no unit.
std::string unit_of_cgroup(std::string_view cgroup_file);

}  // namespace ferry::container
