#include <algorithm>

#include "container/docker.h"
#include "container/json.h"

namespace ferry::container {
namespace {

std::vector<Mount> parse_mounts(const Json& list) {
  std::vector<Mount> out;
  if (!list.is_array()) {
    return out;
  }
  for (const Json& item : list) {
    out.push_back({.type = json_text(item, "Type"),
                   .name = json_text(item, "Name"),
                   .source = json_text(item, "Source"),
                   .destination = json_text(item, "Destination"),
                   .driver = json_text(item, "Driver"),
                   .writable = json_bool(item, "RW")});
  }
  return out;
}

std::vector<Endpoint> parse_endpoints(const Json& networks) {
  std::vector<Endpoint> out;
  if (!networks.is_object()) {
    return out;
  }
  for (const auto& [name, settings] : networks.items()) {
    out.push_back({.network = name,
                   .ip = json_text(settings, "IPAddress"),
                   .ip6 = json_text(settings, "GlobalIPv6Address"),
                   .mac = json_text(settings, "MacAddress"),
                   .aliases = json_texts(json_at(settings, "Aliases"))});
  }
  return out;
}

std::vector<std::string> parse_ports(const Json& bindings) {
  std::vector<std::string> out;
  if (!bindings.is_object()) {
    return out;
  }
  for (const auto& [inside, list] : bindings.items()) {
    if (!list.is_array()) {
      continue;
    }
    const auto slash = inside.find('/');
    const std::string protocol = slash == std::string::npos ? "tcp" : inside.substr(slash + 1);
    for (const Json& binding : list) {
      const std::string port = json_text(binding, "HostPort");
      if (!port.empty() && port != "0") {
        out.push_back(port + "/" + protocol);
      }
    }
  }
  return out;
}

}  // namespace

Result<Container> parse_container(std::string_view inspect_json) {
  FERRY_TRY(const Json root, parse_json(inspect_json, "Docker's description of the container"));
  Container out;
  out.id = json_text(root, "Id");
  if (out.id.empty()) {
    return fail(Kind::corrupt, "Docker's description of the container has no Id");
  }
  out.name = json_text(root, "Name");
  if (out.name.starts_with('/')) {
    out.name.erase(0, 1);
  }
  const Json& state = json_at(root, "State");
  out.status = json_text(state, "Status");
  out.pid = HostPid(static_cast<pid_t>(json_int(state, "Pid")));
  out.health = json_text(json_at(state, "Health"), "Status");
  out.image_id = json_text(root, "Image");
  out.log_path = json_text(root, "LogPath");
  out.exec_ids = json_texts(json_at(root, "ExecIDs"));
  out.mounts = parse_mounts(json_at(root, "Mounts"));
  out.endpoints = parse_endpoints(json_at(json_at(root, "NetworkSettings"), "Networks"));

  const Json& graph = json_at(root, "GraphDriver");
  out.storage_driver = json_text(graph, "Name");
  if (out.storage_driver.empty()) {
    out.storage_driver = json_text(root, "Driver");
  }
  const Json& directories = json_at(graph, "Data");
  out.upper_dir = json_text(directories, "UpperDir");
  out.lower_dir = json_text(directories, "LowerDir");
  out.merged_dir = json_text(directories, "MergedDir");

  const Json& host = json_at(root, "HostConfig");
  const Json& policy = json_at(host, "RestartPolicy");
  if (const std::string name = json_text(policy, "Name"); !name.empty()) {
    out.restart_policy.name = name;
  }
  out.restart_policy.maximum_retries = json_int(policy, "MaximumRetryCount");
  out.auto_remove = json_bool(host, "AutoRemove");
  out.privileged = json_bool(host, "Privileged");
  out.runtime = json_text(host, "Runtime");
  out.network_mode = json_text(host, "NetworkMode");
  out.ipc_mode = json_text(host, "IpcMode");
  out.pid_mode = json_text(host, "PidMode");
  out.uts_mode = json_text(host, "UTSMode");
  out.log_driver = json_text(json_at(host, "LogConfig"), "Type");
  out.ports = parse_ports(json_at(host, "PortBindings"));

  const Json& config = json_at(root, "Config");
  out.image_name = json_text(config, "Image");
  out.tty = json_bool(config, "Tty");
  out.open_stdin = json_bool(config, "OpenStdin");
  out.foreground = json_bool(config, "AttachStdout") || json_bool(config, "AttachStdin");
  out.hostname = json_text(config, "Hostname");
  out.domainname = json_text(config, "Domainname");
  out.health_probe = json_texts(json_at(json_at(config, "Healthcheck"), "Test"));
  out.inspect_json = std::string(inspect_json);
  return out;
}

Result<DaemonInfo> parse_daemon_info(std::string_view info_json) {
  FERRY_TRY(const Json root, parse_json(info_json, "Docker's description of itself"));
  DaemonInfo out{.root_dir = json_text(root, "DockerRootDir"),
                 .server_version = json_text(root, "ServerVersion"),
                 .storage_driver = json_text(root, "Driver"),
                 .experimental = json_bool(root, "ExperimentalBuild"),
                 .live_restore = json_bool(root, "LiveRestoreEnabled")};
  if (out.root_dir.empty()) {
    return fail(Kind::corrupt, "Docker's description of itself has no DockerRootDir");
  }
  for (const std::string& option : json_texts(json_at(root, "SecurityOptions"))) {
    out.rootless = out.rootless || option == "name=rootless" || option.starts_with("name=rootless,");
    out.user_namespaces = out.user_namespaces || option == "name=userns" || option.starts_with("name=userns,");
  }
  return out;
}

Result<ImageInfo> parse_image(std::string_view inspect_json) {
  FERRY_TRY(const Json root, parse_json(inspect_json, "Docker's description of the image"));
  ImageInfo out{.id = json_text(root, "Id"),
                .tags = json_texts(json_at(root, "RepoTags")),
                .diff_ids = json_texts(json_at(json_at(root, "RootFS"), "Layers")),
                .architecture = json_text(root, "Architecture")};
  if (out.id.empty()) {
    return fail(Kind::corrupt, "Docker's description of the image has no Id");
  }
  return out;
}

Result<Network> parse_network(std::string_view inspect_json) {
  FERRY_TRY(const Json root, parse_json(inspect_json, "Docker's description of the network"));
  Network out;
  out.id = json_text(root, "Id");
  out.name = json_text(root, "Name");
  out.driver = json_text(root, "Driver");
  out.parent = json_text(json_at(root, "Options"), "parent");
  const Json& pools = json_at(json_at(root, "IPAM"), "Config");
  if (pools.is_array()) {
    for (const Json& pool : pools) {
      out.subnets.push_back(json_text(pool, "Subnet"));
    }
  }
  std::sort(out.subnets.begin(), out.subnets.end());
  // Docker picks a subnet for a network made without one, and then refuses fixed addresses in it; the
  // default bridge refuses them always.
  out.explicit_subnet = !out.subnets.empty() && out.name != "bridge";
  return out;
}

Result<ExecSession> parse_exec(std::string_view inspect_json) {
  FERRY_TRY(const Json root, parse_json(inspect_json, "Docker's description of the exec session"));
  ExecSession out;
  out.id = json_text(root, "ID");
  out.running = json_bool(root, "Running");
  out.pid = HostPid(static_cast<pid_t>(json_int(root, "Pid")));
  const Json& process = json_at(root, "ProcessConfig");
  out.command = json_text(process, "entrypoint");
  for (const std::string& argument : json_texts(json_at(process, "arguments"))) {
    out.command += " " + argument;
  }
  return out;
}

Result<VolumeInfo> parse_volume(std::string_view inspect_json) {
  FERRY_TRY(const Json root, parse_json(inspect_json, "Docker's description of the volume"));
  VolumeInfo out{.name = json_text(root, "Name"),
                 .driver = json_text(root, "Driver"),
                 .mountpoint = json_text(root, "Mountpoint"),
                 .labels = {},
                 .options = {}};
  if (out.name.empty()) {
    return fail(Kind::corrupt, "Docker's description of the volume has no Name");
  }
  const auto read = [&](const char* key, std::map<std::string, std::string>& into) {
    if (const Json& pairs = json_at(root, key); pairs.is_object()) {
      for (const auto& [name, value] : pairs.items()) {
        into.emplace(name, value.is_string() ? value.get<std::string>() : std::string());
      }
    }
  };
  read("Labels", out.labels);
  read("Options", out.options);
  return out;
}

}  // namespace ferry::container
