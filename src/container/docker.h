// Docker's containers and images, in the words that a move needs.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "container/docker_api.h"

namespace ferry::container {

struct DaemonInfo {
  std::string root_dir;  // DockerRootDir
  std::string server_version;
  std::string storage_driver;  // "overlay2"
  bool experimental = false;
  bool live_restore = false;
  bool rootless = false;
  bool user_namespaces = false;  // userns-remap
};

struct Mount {
  std::string type;  // bind, volume, tmpfs
  std::string name;  // of a volume
  std::string source;
  std::string destination;
  std::string driver;
  bool writable = false;
};

struct Endpoint {  // one network that a container is connected to
  std::string network;
  std::string ip;  // as it is now; empty if stopped
  std::string ip6;
  std::string mac;
  std::vector<std::string> aliases;
};

struct RestartPolicy {
  std::string name = "no";
  std::int64_t maximum_retries = 0;
  auto operator<=>(const RestartPolicy&) const = default;
};

struct Container {
  std::string id;
  std::string name;    // without Docker's leading slash
  std::string status;  // created, running, paused, restarting, removing, exited, dead
  HostPid pid;         // 0 if it does not run
  std::string image_id;
  std::string image_name;
  std::string storage_driver;
  std::string upper_dir;
  std::string lower_dir;
  std::string merged_dir;
  std::vector<Mount> mounts;
  std::vector<Endpoint> endpoints;
  RestartPolicy restart_policy;
  bool auto_remove = false;
  bool tty = false;
  bool open_stdin = false;
  bool foreground = false;  // started with a client attached
  bool privileged = false;
  std::string runtime;
  std::string hostname;
  std::string domainname;
  std::string network_mode;
  std::string ipc_mode;
  std::string pid_mode;
  std::string uts_mode;
  std::string log_path;
  std::string log_driver;
  std::vector<std::string> exec_ids;
  std::string health;                     // empty without a health check
  std::vector<std::string> health_probe;  // its command: {"CMD", "x"}, {"CMD-SHELL", "x"}
  std::vector<std::string> ports;         // published: "0.0.0.0:80/tcp"
  std::string inspect_json;               // the whole answer, for the twin

  [[nodiscard]] bool running() const { return status == "running"; }
};

struct ExecSession {
  std::string id;
  HostPid pid;
  std::string command;
  bool running = false;
};

struct ImageInfo {
  std::string id;
  std::vector<std::string> tags;
  std::vector<std::string> diff_ids;
  std::string architecture;
};

struct VolumeInfo {
  std::string name;
  std::string driver;
  std::string mountpoint;
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> options;
};

struct Network {
  std::string id;
  std::string name;
  std::string driver;
  std::string parent;  // macvlan
  std::vector<std::string> subnets;
  bool explicit_subnet = false;  // without it Docker gives no fixed addresses
};

// Parsers of Docker's answers, apart from the transport so that they can be tested on text.
Result<Container> parse_container(std::string_view inspect_json);
Result<DaemonInfo> parse_daemon_info(std::string_view info_json);
Result<ImageInfo> parse_image(std::string_view inspect_json);
Result<Network> parse_network(std::string_view inspect_json);
Result<ExecSession> parse_exec(std::string_view inspect_json);
Result<VolumeInfo> parse_volume(std::string_view inspect_json);

class Docker {
 public:
  // The daemon named by DOCKER_HOST.  Refuses daemons that ferry cannot serve: rootless, remapped
  // users, remote.
  static Result<Docker> connect();
  explicit Docker(DockerApi api, DaemonInfo info) : api_(std::move(api)), info_(std::move(info)) {}

  [[nodiscard]] const DaemonInfo& info() const { return info_; }
  [[nodiscard]] DockerApi& api() { return api_; }
  [[nodiscard]] const DockerApi& api() const { return api_; }
  // Docker keeps everything about a container, its checkpoints too, in this directory.
  [[nodiscard]] std::string container_dir(const std::string& id) const { return info_.root_dir + "/containers/" + id; }

  Result<Container> container(const std::string& id_or_name);
  Result<ExecSession> exec(const std::string& exec_id);
  Result<ImageInfo> image(const std::string& id_or_name);
  Result<Network> network(const std::string& id_or_name);
  // Host ports ("80/tcp") that running containers publish, with the container's name.
  struct TakenPort {
    std::string port;
    std::string container;
  };
  Result<std::vector<TakenPort>> published_ports();
  Result<bool> volume_exists(const std::string& name);

  // The new container's id.  `request_json` is twin.h's, or any body of POST /containers/create.
  Result<std::string> create(const std::string& name, const std::string& request_json);
  Result<void> start(const std::string& id);
  // Restores from containers/ID/checkpoints/NAME in the daemon's directory.
  Result<void> start_from_checkpoint(const std::string& id, const std::string& checkpoint);
  Result<void> pause(const std::string& id);
  Result<void> unpause(const std::string& id);
  Result<void> kill(const std::string& id);
  Result<void> rename(const std::string& id, const std::string& new_name);
  Result<void> set_restart_policy(const std::string& id, const RestartPolicy& policy);
  // Waits until Docker itself knows that the container does not run.
  Result<void> wait_until_stopped(const std::string& id, std::chrono::seconds limit);
  // Removes a container that does not run, with its anonymous volumes if asked.
  Result<void> remove(const std::string& id, bool with_anonymous_volumes = false);
  Result<void> connect_network(const std::string& network, const std::string& connect_json);
  Result<void> disconnect_network(const std::string& network, const std::string& id);
  Result<void> tag_image(const std::string& id, const std::string& name);
  // Errors: gone.
  Result<VolumeInfo> volume(const std::string& name);
  // Names of containers that have it mounted, with the ids of them.
  struct VolumeUser {
    std::string id;
    std::string name;
    bool running = false;
  };
  Result<std::vector<VolumeUser>> users_of_volume(const std::string& name);
  Result<void> create_volume(const VolumeInfo& volume);
  Result<void> remove_volume(const std::string& name);

  // Docker's own checkpoints.  An empty directory means the container's own folder.
  Result<void> create_checkpoint(const std::string& id, const std::string& checkpoint, const std::string& directory,
                                 bool exit);
  Result<std::vector<std::string>> checkpoints(const std::string& id, const std::string& directory);
  Result<void> remove_checkpoint(const std::string& id, const std::string& checkpoint, const std::string& directory);

 private:
  DockerApi api_;
  DaemonInfo info_;
};

}  // namespace ferry::container
