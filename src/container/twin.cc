#include "container/twin.h"

#include <algorithm>

#include "container/json.h"

namespace ferry::container {
namespace {

bool belongs_to_other(const std::string& mode) { return mode.starts_with("container:"); }

bool is_built_in(const std::string& network) { return network == "host" || network == "none" || network == "bridge"; }

// Docker calls the default network by several names in NetworkMode.
std::string network_of_mode(const std::string& mode) { return mode.empty() || mode == "default" ? "bridge" : mode; }

// Docker 20.10 makes the MAC of an endpoint from its address when none is given.
std::string mac_of_address(std::string_view ip) {
  std::array<int, 4> parts{};
  std::size_t index = 0;
  for (const char c : ip) {
    if (c == '.') {
      if (++index == parts.size()) {
        return {};
      }
    } else if (c >= '0' && c <= '9') {
      parts[index] = parts[index] * 10 + (c - '0');
    } else {
      return {};
    }
  }
  return index == 3 ? fmt::format("02:42:{:02x}:{:02x}:{:02x}:{:02x}", parts[0], parts[1], parts[2], parts[3])
                    : std::string();
}

class Planner {
 public:
  Planner(const Container& source, const std::map<std::string, Network>& networks, const DestinationFacts& there,
          const Json& inspect)
      : source_(source),
        networks_(networks),
        there_(there),
        config_(json_at(inspect, "Config")),
        host_(json_at(inspect, "HostConfig")) {}

  TwinPlan plan() {
    plan_.name = source_.name;
    plan_.restart_policy = source_.restart_policy;
    plan_.auto_remove = source_.auto_remove;
    name_and_image();
    ties();
    host_config();
    mounts();
    ports();
    networks();
    Json request = config_;
    request["HostConfig"] = host_;
    if (!endpoints_.empty()) {
      request["NetworkingConfig"] = {{"EndpointsConfig", endpoints_}};
    }
    plan_.request_json = json_dump(request);
    return std::move(plan_);
  }

 private:
  template <class... Args>
  void obstacle(fmt::format_string<Args...> text, Args&&... args) {
    plan_.obstacles.push_back(fmt::format(text, std::forward<Args>(args)...));
  }
  template <class... Args>
  void difference(fmt::format_string<Args...> text, Args&&... args) {
    plan_.differences.push_back(fmt::format(text, std::forward<Args>(args)...));
  }

  void name_and_image() {
    if (!there_.name_holder.empty()) {
      obstacle("the destination already has a container named {}: remove or rename it", source_.name);
    }
    // A name may mean another image over there; the id never does.
    if (there_.image_of_name != source_.image_id) {
      config_["Image"] = source_.image_id;
      if (!there_.image_of_name.empty()) {
        difference("{} is another image on the destination, so the container names its image by id there",
                   source_.image_name);
      }
    }
    // No client is attached to the twin, whatever the source was started with.
    for (const char* stream : {"AttachStdin", "AttachStdout", "AttachStderr"}) {
      config_[stream] = false;
    }
    if (source_.uts_mode == "host") {
      config_.erase("Hostname");
      config_.erase("Domainname");
      difference("the container uses the host's own name (--uts host), which is another one on the destination");
    }
  }

  void ties() {
    const std::vector<std::pair<const char*, const std::string*>> modes{
        {"network", &source_.network_mode}, {"ipc", &source_.ipc_mode}, {"pid", &source_.pid_mode}};
    for (const auto& [kind, mode] : modes) {
      if (belongs_to_other(*mode)) {
        obstacle(
            "the container shares its {} namespace with {}: containers that share a namespace cannot be moved alone",
            kind, *mode);
      }
    }
    if (source_.pid_mode == "host") {
      obstacle("the container uses the host's pids (--pid host), which other processes hold on the destination");
    }
    if (!json_texts(json_at(host_, "VolumesFrom")).empty()) {
      obstacle("the container takes its volumes from another one (--volumes-from): name the volumes instead");
    }
    if (!json_texts(json_at(host_, "Links")).empty()) {
      obstacle("the container is linked to others (--link): use a network with names instead");
    }
    if (const Json& requests = json_at(host_, "DeviceRequests"); requests.is_array() && !requests.empty()) {
      obstacle("the container uses devices such as GPUs (--gpus), whose state cannot be carried over");
    }
    if (json_at(json_at(config_, "Labels"), "com.docker.swarm.service.id").is_string()) {
      obstacle("the container belongs to a swarm service: let swarm place it");
    }
    if (!source_.runtime.empty() && source_.runtime != "runc" && source_.runtime != "io.containerd.runc.v2") {
      obstacle("the container runs under the runtime {}: only runc is supported", source_.runtime);
    }
  }

  void host_config() {
    // Docker must start or remove nothing by itself while two hosts agree on who has the container.
    host_["RestartPolicy"] = {{"Name", "no"}, {"MaximumRetryCount", 0}};
    host_["AutoRemove"] = false;
    host_["ContainerIDFile"] = "";
  }

  void mounts() {
    for (const Mount& mount : source_.mounts) {
      if (mount.type == "bind" && !there_.paths.contains(mount.source)) {
        obstacle("{} is mounted at {} and does not exist on the destination: create it there", mount.source,
                 mount.destination);
      } else if (mount.type == "volume" && mount.driver != "local") {
        obstacle("volume {} at {} uses the driver {}: only local volumes are supported", mount.name, mount.destination,
                 mount.driver);
      } else if (mount.type == "volume" && there_.copied_volumes.contains(mount.name)) {
        continue;  // volume.h says what becomes of it
      } else if (mount.type == "volume" && !there_.volumes.contains(mount.name)) {
        difference("volume {} at {} is new and empty on the destination: its content is not copied", mount.name,
                   mount.destination);
      } else if (mount.type == "volume" || mount.type == "bind") {
        difference("{} shows the destination's own content of {}: it is not copied", mount.destination,
                   mount.type == "volume" ? mount.name : mount.source);
      } else if (mount.type != "tmpfs") {
        obstacle("the mount at {} is of type {}, which is not supported", mount.destination, mount.type);
      }
    }
    name_anonymous_volumes();
  }

  // Docker gives a volume without a name a random one; the twin has to have the same one, so that a
  // content brought there is found.
  void name_anonymous_volumes() {
    const std::vector<std::string> binds = json_texts(json_at(host_, "Binds"));
    std::set<std::string> named;
    for (const std::string& bind : binds) {
      const auto colon = bind.find(':');
      const auto end = bind.find(':', colon + 1);
      named.insert(bind.substr(colon + 1, end == std::string::npos ? end : end - colon - 1));
    }
    Json mounts_json = json_at(host_, "Mounts").is_array() ? json_at(host_, "Mounts") : Json::array();
    for (Json& mount : mounts_json) {
      const std::string target = json_text(mount, "Target");
      named.insert(target);
      if (json_text(mount, "Type") == "volume" && json_text(mount, "Source").empty()) {
        for (const Mount& actual : source_.mounts) {
          if (actual.destination == target) {
            mount["Source"] = actual.name;
          }
        }
      }
    }
    for (const Mount& mount : source_.mounts) {
      if (mount.type == "volume" && !named.contains(mount.destination)) {
        mounts_json.push_back(
            {{"Type", "volume"}, {"Source", mount.name}, {"Target", mount.destination}, {"ReadOnly", !mount.writable}});
      }
    }
    if (!mounts_json.empty()) {
      host_["Mounts"] = mounts_json;
    }
  }

  void ports() {
    for (const std::string& port : std::set<std::string>(source_.ports.begin(), source_.ports.end())) {
      for (const Docker::TakenPort& taken : there_.taken_ports) {
        if (taken.port == port) {
          obstacle("port {} is taken on the destination by container {}", port, taken.container);
          break;  // once, although Docker lists it for IPv4 and for IPv6
        }
      }
    }
    if (json_bool(host_, "PublishAllPorts")) {
      difference("ports published with -P get other numbers on the destination");
    }
  }

  void networks() {
    const std::string first = network_of_mode(source_.network_mode);
    if (first == "host") {
      difference("the container uses the host's network, whose addresses are others on the destination");
      plan_.keeps_addresses = false;
      return;
    }
    for (const Endpoint& endpoint : source_.endpoints) {
      if (endpoint.network == "none") {
        continue;
      }
      if (endpoint.network == "bridge") {
        if (!endpoint.ip.empty()) {
          difference("address {} on Docker's default bridge is not kept: that network is each host's own", endpoint.ip);
          plan_.keeps_addresses = false;
        }
        continue;
      }
      connect(endpoint, endpoint.network == first);
    }
  }

  void connect(const Endpoint& endpoint, bool is_first) {
    const auto there = there_.networks.find(endpoint.network);
    const auto here = networks_.find(endpoint.network);
    if (there == there_.networks.end()) {
      obstacle("network {} does not exist on the destination: create it there{}", endpoint.network,
               here == networks_.end() ? std::string() : creation_hint(here->second));
      return;
    }
    Json settings = Json::object();
    if (const auto aliases = kept_aliases(endpoint); !aliases.empty()) {
      settings["Aliases"] = aliases;
    }
    const bool same_segment = here != networks_.end() && here->second.driver == there->second.driver &&
                              (here->second.driver == "macvlan" || here->second.driver == "bridge") &&
                              here->second.explicit_subnet && there->second.explicit_subnet &&
                              here->second.subnets == there->second.subnets;
    if (same_segment && !endpoint.ip.empty()) {
      settings["IPAMConfig"] = {{"IPv4Address", endpoint.ip}};
      if (!endpoint.ip6.empty()) {
        settings["IPAMConfig"]["IPv6Address"] = endpoint.ip6;
      }
      keep_mac(endpoint, is_first, settings);
    } else if (!endpoint.ip.empty()) {
      plan_.keeps_addresses = false;
      difference(
          "address {} on network {} is not kept: the network on the destination is not the same "
          "(driver and subnet have to be equal, and the driver macvlan or bridge)",
          endpoint.ip, endpoint.network);
    }
    if (is_first) {
      endpoints_[endpoint.network] = settings;
    } else {
      plan_.connections.push_back({endpoint.network, json_dump(Json{{"EndpointConfig", settings}})});
    }
  }

  void keep_mac(const Endpoint& endpoint, bool is_first, Json& settings) {
    // API 1.44 moved the address from the container to each endpoint (Docker Engine API history).
    const bool per_endpoint = there_.api_version.size() == 4 && there_.api_version >= "1.44";
    if (endpoint.mac.empty()) {
      return;
    }
    if (per_endpoint) {
      settings["MacAddress"] = endpoint.mac;
    } else if (is_first) {
      config_["MacAddress"] = endpoint.mac;
    } else if (mac_of_address(endpoint.ip) != endpoint.mac) {
      difference("MAC address {} on network {} is not kept: this Docker sets it on a container's first network only",
                 endpoint.mac, endpoint.network);
    }
  }

  // Docker adds the short id by itself, and it is another one over there.
  [[nodiscard]] std::vector<std::string> kept_aliases(const Endpoint& endpoint) const {
    std::vector<std::string> out;
    for (const std::string& alias : endpoint.aliases) {
      if (!source_.id.starts_with(alias)) {
        out.push_back(alias);
      }
    }
    return out;
  }

  static std::string creation_hint(const Network& network) {
    std::string out = " (docker network create -d " + network.driver;
    for (const std::string& subnet : network.subnets) {
      out += " --subnet " + subnet;
    }
    if (network.driver == "macvlan") {
      out += " -o parent=INTERFACE";
    }
    return out + " " + network.name + ")";
  }

  const Container& source_;
  const std::map<std::string, Network>& networks_;
  const DestinationFacts& there_;
  Json config_;
  Json host_;
  Json endpoints_ = Json::object();
  TwinPlan plan_;
};

}  // namespace

Result<TwinPlan> plan_twin(const Container& source, const std::map<std::string, Network>& source_networks,
                           const DestinationFacts& destination) {
  FERRY_TRY(const Json inspect, parse_json(source.inspect_json, "the description of the container"));
  if (!json_at(inspect, "Config").is_object() || !json_at(inspect, "HostConfig").is_object()) {
    return fail(Kind::corrupt, "the description of container {} is incomplete", source.name);
  }
  return Planner(source, source_networks, destination, inspect).plan();
}

std::string encode_networks(const std::map<std::string, Network>& networks) {
  Json out = Json::array();
  for (const auto& [name, network] : networks) {
    out.push_back({{"name", name},
                   {"driver", network.driver},
                   {"parent", network.parent},
                   {"subnets", network.subnets},
                   {"explicit_subnet", network.explicit_subnet}});
  }
  return json_dump(out);
}

Result<std::map<std::string, Network>> decode_networks(std::string_view json) {
  FERRY_TRY(const Json list, parse_json(json, "the description of the networks"));
  if (!list.is_array()) {
    return fail(Kind::corrupt, "the description of the networks is no list");
  }
  std::map<std::string, Network> out;
  for (const Json& item : list) {
    Network network;
    network.name = json_text(item, "name");
    network.driver = json_text(item, "driver");
    network.parent = json_text(item, "parent");
    network.subnets = json_texts(json_at(item, "subnets"));
    network.explicit_subnet = json_bool(item, "explicit_subnet");
    out.emplace(network.name, network);
  }
  return out;
}

Result<std::map<std::string, Network>> networks_of(Docker& docker, const Container& source) {
  std::map<std::string, Network> out;
  for (const Endpoint& endpoint : source.endpoints) {
    if (!is_built_in(endpoint.network)) {
      FERRY_TRY(Network network, docker.network(endpoint.network));
      out.emplace(endpoint.network, std::move(network));
    }
  }
  return out;
}

}  // namespace ferry::container
