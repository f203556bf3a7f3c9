#include "container/docker.h"

#include <cstdlib>

#include "container/json.h"

namespace ferry::container {
namespace {

// Docker and containerd need up to half a second to start anything, a slow disk much more.
constexpr std::chrono::seconds kStartLimit(180);

std::string on_container(const std::string& id, std::string_view action) {
  return fmt::format("/containers/{}/{}", url_escape(id), action);
}

}  // namespace

Result<Docker> Docker::connect() {
  const char* host = std::getenv("DOCKER_HOST");
  FERRY_TRY(const std::string socket, socket_of_docker_host(host == nullptr ? "" : host));
  FERRY_TRY(DockerApi api, DockerApi::connect(socket));
  FERRY_TRY(const std::string text, api.get("/info"));
  FERRY_TRY(DaemonInfo info, parse_daemon_info(text));
  if (info.rootless) {
    return fail(Kind::unsupported,
                "the Docker daemon at {} runs rootless, which ferry does not support: use a daemon that runs as root",
                socket);
  }
  if (info.user_namespaces) {
    return fail(Kind::unsupported, "the Docker daemon at {} remaps users (userns-remap), which ferry does not support",
                socket);
  }
  return Docker(std::move(api), std::move(info));
}

Result<Container> Docker::container(const std::string& id_or_name) {
  auto text = api_.get(on_container(id_or_name, "json"));
  if (!text && text.error().kind == Kind::gone) {
    return fail(Kind::gone, "there is no container \"{}\"", id_or_name);
  }
  FERRY_CHECK(text);
  return parse_container(*text);
}

Result<ExecSession> Docker::exec(const std::string& exec_id) {
  FERRY_TRY(const std::string text, api_.get(fmt::format("/exec/{}/json", url_escape(exec_id))));
  return parse_exec(text);
}

Result<ImageInfo> Docker::image(const std::string& id_or_name) {
  auto text = api_.get(fmt::format("/images/{}/json", url_escape(id_or_name)));
  if (!text && text.error().kind == Kind::gone) {
    return fail(Kind::gone, "there is no image \"{}\"", id_or_name);
  }
  FERRY_CHECK(text);
  return parse_image(*text);
}

Result<Network> Docker::network(const std::string& id_or_name) {
  FERRY_TRY(const std::string text, api_.get("/networks/" + url_escape(id_or_name)));
  return parse_network(text);
}

Result<std::vector<Docker::TakenPort>> Docker::published_ports() {
  FERRY_TRY(const std::string text, api_.get("/containers/json"));
  FERRY_TRY(const Json list, parse_json(text, "Docker's list of containers"));
  std::vector<TakenPort> out;
  if (!list.is_array()) {
    return out;
  }
  for (const Json& item : list) {
    const std::vector<std::string> names = json_texts(json_at(item, "Names"));
    std::string name = names.empty() ? json_text(item, "Id") : names.front();
    if (name.starts_with('/')) {
      name.erase(0, 1);
    }
    const Json& ports = json_at(item, "Ports");
    if (!ports.is_array()) {
      continue;
    }
    for (const Json& port : ports) {
      if (const auto number = json_int(port, "PublicPort"); number != 0) {
        out.push_back({fmt::format("{}/{}", number, json_text(port, "Type")), name});
      }
    }
  }
  return out;
}

Result<bool> Docker::volume_exists(const std::string& name) {
  const auto found = api_.get("/volumes/" + url_escape(name));
  if (!found && found.error().kind == Kind::gone) {
    return false;
  }
  FERRY_CHECK(found);
  return true;
}

Result<std::string> Docker::create(const std::string& name, const std::string& request_json) {
  FERRY_TRY(const std::string text,
            api_.post("/containers/create?name=" + url_escape(name), request_json, kStartLimit));
  FERRY_TRY(const Json answer, parse_json(text, "Docker's answer to create"));
  const std::string id = json_text(answer, "Id");
  if (id.empty()) {
    return fail(Kind::corrupt, "Docker's answer to create has no Id");
  }
  return id;
}

Result<void> Docker::start(const std::string& id) {
  FERRY_CHECK(api_.post(on_container(id, "start"), {}, kStartLimit));
  return {};
}

Result<void> Docker::start_from_checkpoint(const std::string& id, const std::string& checkpoint) {
  FERRY_CHECK(api_.post(on_container(id, "start?checkpoint=" + url_escape(checkpoint)), {}, kStartLimit));
  return {};
}

Result<void> Docker::pause(const std::string& id) {
  FERRY_CHECK(api_.post(on_container(id, "pause")));
  return {};
}

Result<void> Docker::unpause(const std::string& id) {
  FERRY_CHECK(api_.post(on_container(id, "unpause")));
  return {};
}

Result<void> Docker::kill(const std::string& id) {
  FERRY_CHECK(api_.post(on_container(id, "kill")));
  return {};
}

Result<void> Docker::rename(const std::string& id, const std::string& new_name) {
  FERRY_CHECK(api_.post(on_container(id, "rename?name=" + url_escape(new_name))));
  return {};
}

Result<void> Docker::set_restart_policy(const std::string& id, const RestartPolicy& policy) {
  const Json body = {{"RestartPolicy", {{"Name", policy.name}, {"MaximumRetryCount", policy.maximum_retries}}}};
  FERRY_CHECK(api_.post(on_container(id, "update"), json_dump(body)));
  return {};
}

Result<void> Docker::wait_until_stopped(const std::string& id, std::chrono::seconds limit) {
  auto waited = api_.post(on_container(id, "wait?condition=not-running"), {}, limit);
  // A container with --rm may be gone before we ask.
  if (!waited && waited.error().kind == Kind::gone) {
    return {};
  }
  FERRY_CHECK(std::move(waited).during("waiting until Docker sees container {} stopped", id));
  return {};
}

Result<void> Docker::remove(const std::string& id, bool with_anonymous_volumes) {
  return api_.remove(fmt::format("/containers/{}?v={}", url_escape(id), with_anonymous_volumes ? 1 : 0));
}

Result<void> Docker::connect_network(const std::string& network, const std::string& connect_json) {
  FERRY_CHECK(api_.post(fmt::format("/networks/{}/connect", url_escape(network)), connect_json));
  return {};
}

Result<void> Docker::disconnect_network(const std::string& network, const std::string& id) {
  const Json body = {{"Container", id}, {"Force", true}};
  FERRY_CHECK(api_.post(fmt::format("/networks/{}/disconnect", url_escape(network)), json_dump(body)));
  return {};
}

Result<void> Docker::tag_image(const std::string& id, const std::string& name) {
  // "host:5000/repo:tag": a colon after the last slash starts the tag.
  const auto slash = name.rfind('/');
  const auto colon = name.find(':', slash == std::string::npos ? 0 : slash);
  const std::string repository = name.substr(0, colon);
  const std::string tag = colon == std::string::npos ? "latest" : name.substr(colon + 1);
  FERRY_CHECK(
      api_.post(fmt::format("/images/{}/tag?repo={}&tag={}", url_escape(id), url_escape(repository), url_escape(tag))));
  return {};
}

Result<VolumeInfo> Docker::volume(const std::string& name) {
  FERRY_TRY(const std::string text, api_.get("/volumes/" + url_escape(name)));
  return parse_volume(text);
}

Result<std::vector<Docker::VolumeUser>> Docker::users_of_volume(const std::string& name) {
  const Json filter = {{"volume", {name}}};
  FERRY_TRY(const std::string text, api_.get("/containers/json?all=1&filters=" + url_escape(json_dump(filter))));
  FERRY_TRY(const Json list, parse_json(text, "Docker's list of containers"));
  std::vector<VolumeUser> out;
  if (list.is_array()) {
    for (const Json& item : list) {
      const std::vector<std::string> names = json_texts(json_at(item, "Names"));
      std::string first = names.empty() ? json_text(item, "Id") : names.front();
      if (first.starts_with('/')) {
        first.erase(0, 1);
      }
      const std::string state = json_text(item, "State");
      out.push_back(
          {json_text(item, "Id"), std::move(first), state == "running" || state == "paused" || state == "restarting"});
    }
  }
  return out;
}

Result<void> Docker::create_volume(const VolumeInfo& volume) {
  const Json body = {
      {"Name", volume.name}, {"Driver", volume.driver}, {"Labels", volume.labels}, {"DriverOpts", volume.options}};
  FERRY_CHECK(api_.post("/volumes/create", json_dump(body)));
  return {};
}

Result<void> Docker::remove_volume(const std::string& name) { return api_.remove("/volumes/" + url_escape(name)); }

Result<void> Docker::create_checkpoint(const std::string& id, const std::string& checkpoint,
                                       const std::string& directory, bool exit) {
  Json body = {{"CheckpointID", checkpoint}, {"Exit", exit}};
  if (!directory.empty()) {
    body["CheckpointDir"] = directory;
  }
  FERRY_CHECK(api_.post(on_container(id, "checkpoints"), json_dump(body), kStartLimit));
  return {};
}

Result<std::vector<std::string>> Docker::checkpoints(const std::string& id, const std::string& directory) {
  FERRY_TRY(const std::string text,
            api_.get(on_container(id, directory.empty() ? "checkpoints" : "checkpoints?dir=" + url_escape(directory))));
  FERRY_TRY(const Json list, parse_json(text, "Docker's list of checkpoints"));
  std::vector<std::string> out;
  if (list.is_array()) {
    for (const Json& item : list) {
      out.push_back(json_text(item, "Name"));
    }
  }
  return out;
}

Result<void> Docker::remove_checkpoint(const std::string& id, const std::string& checkpoint,
                                       const std::string& directory) {
  const std::string query = directory.empty() ? "" : "?dir=" + url_escape(directory);
  return api_.remove(on_container(id, "checkpoints/" + url_escape(checkpoint) + query));
}

}  // namespace ferry::container
