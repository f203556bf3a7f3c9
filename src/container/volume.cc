#include "container/volume.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/unique_fd.h"
#include "container/json.h"

namespace ferry::container {
namespace {

namespace fs = std::filesystem;

std::string aside_of(const std::string& directory, const std::string& move) {
  return fmt::format("{}.ferry-{}", directory, move);
}

std::string options_text(const VolumeInfo& volume) {
  std::string out;
  for (const auto& [key, value] : volume.options) {
    out += (out.empty() ? "" : ", ") + key + "=" + value;
  }
  return out;
}

// Who else has a volume mounted and runs.
Result<std::string> other_user(Docker& docker, const std::string& volume, const std::string& own_id) {
  FERRY_TRY(const auto users, docker.users_of_volume(volume));
  for (const auto& user : users) {
    if (user.running && user.id != own_id) {
      return user.name;
    }
  }
  return std::string();
}

Json to_json(const VolumeInfo& volume) {
  return {{"name", volume.name}, {"driver", volume.driver}, {"labels", volume.labels}, {"options", volume.options}};
}

VolumeInfo from_json(const Json& json) {
  VolumeInfo out{.name = json_text(json, "name"),
                 .driver = json_text(json, "driver"),
                 .mountpoint = {},
                 .labels = {},
                 .options = {}};
  const auto read = [&](const char* key, std::map<std::string, std::string>& into) {
    if (const Json& pairs = json_at(json, key); pairs.is_object()) {
      for (const auto& [name, value] : pairs.items()) {
        into.emplace(name, value.is_string() ? value.get<std::string>() : std::string());
      }
    }
  };
  read("labels", out.labels);
  read("options", out.options);
  return out;
}

}  // namespace

std::string shared_memory_of(const Docker& docker, const std::string& container_id) {
  return docker.container_dir(container_id) + "/mounts/shm";
}

Result<LeavingVolumes> choose_volumes(Docker& docker, const Container& container, const VolumeChoice& choice) {
  LeavingVolumes out;
  out.replace = choice.replace;
  std::set<std::string> seen;
  for (const Mount& mount : container.mounts) {
    if (mount.type != "volume" || mount.driver != "local" || !seen.insert(mount.name).second) {
      continue;  // another driver's are an obstacle, which the twin's plan names
    }
    FERRY_TRY(VolumeInfo info, docker.volume(mount.name));
    const bool named = choice.only.contains(mount.name);
    if (!info.options.empty()) {
      if (named) {
        return fail(
            Kind::unsupported,
            "volume {} is made with options ({}), so its content is not this host's to copy: it is made with the same ones on the destination",
            mount.name, options_text(info));
      }
      out.made_only.push_back(std::move(info));
      continue;
    }
    if (choice.none || (!choice.only.empty() && !named)) {
      continue;
    }
    FERRY_TRY(const std::string other, other_user(docker, mount.name, container.id));
    if (!other.empty() && !named) {
      return fail(
          Kind::unsupported,
          "volume {} is also used by container {}, which stays here and would go on with this copy: stop that one, copy it nevertheless with --volume {}, or "
          "leave the volumes behind with --no-volumes",
          mount.name, other, mount.name);
    }
    if (!other.empty()) {
      out.notes.push_back(fmt::format(
          "volume {} is also used by container {}: from now on there are two of it, and what {} was writing may be torn in the copy",
          mount.name, other, other));
    }
    out.copied.push_back({std::move(info), mount.destination});
  }
  for (const std::string& name : choice.only) {
    if (!seen.contains(name)) {
      return fail(Kind::invalid, "container {} has no volume named {} of the local driver", container.name, name);
    }
  }
  if (container.ipc_mode == "shareable") {
    out.copied.push_back({VolumeInfo{.name = {},
                                     .driver = {},
                                     .mountpoint = shared_memory_of(docker, container.id),
                                     .labels = {},
                                     .options = {}},
                          "/dev/shm"});
  }
  return out;
}

std::string encode_volumes(const LeavingVolumes& volumes) {
  Json copied = Json::array();
  for (const LeavingVolume& volume : volumes.copied) {
    Json item = to_json(volume.info);
    item["shown_at"] = volume.shown_at;
    copied.push_back(std::move(item));
  }
  Json made = Json::array();
  for (const VolumeInfo& volume : volumes.made_only) {
    made.push_back(to_json(volume));
  }
  return json_dump(Json{{"copied", copied}, {"made_only", made}, {"replace", volumes.replace}});
}

Result<LeavingVolumes> decode_volumes(std::string_view json) {
  LeavingVolumes out;
  FERRY_TRY(const Json root, parse_json(json, "the description of the volumes"));
  for (const char* key : {"copied", "made_only"}) {
    const Json& list = json_at(root, key);
    if (!list.is_array()) {
      return fail(Kind::corrupt, "the description of the volumes is incomplete");
    }
    for (const Json& item : list) {
      if (std::string_view(key) == "copied") {
        out.copied.push_back({from_json(item), json_text(item, "shown_at")});
      } else {
        out.made_only.push_back(from_json(item));
      }
    }
  }
  out.replace = json_bool(root, "replace");
  return out;
}

Result<ArrivingVolumes> plan_volumes(Docker& docker, LeavingVolumes asked) {
  ArrivingVolumes out;
  const auto look = [&](const VolumeInfo& wanted, bool copied) -> Result<void> {
    const auto there = docker.volume(wanted.name);
    if (!there && there.error().kind == Kind::gone) {
      out.to_make.push_back(wanted.name);
      if (!copied) {
        out.differences.push_back(
            fmt::format("volume {} is made on the destination with the same options ({}): its content is not copied",
                        wanted.name, options_text(wanted)));
      }
      return {};
    }
    FERRY_CHECK(there);
    if (!copied) {
      return {};
    }
    if (there->driver != "local" || !there->options.empty()) {
      out.obstacles.push_back(fmt::format(
          "the destination has a volume {} of another kind (driver {}{}): remove or rename one of them, or say --no-volumes",
          wanted.name, there->driver, there->options.empty() ? "" : ", " + options_text(*there)));
      return {};
    }
    std::error_code failed;
    const bool empty = fs::is_empty(there->mountpoint, failed);
    if (!empty && !asked.replace) {
      out.obstacles.push_back(fmt::format(
          "the destination has a volume {} that is not empty: remove it there (docker volume rm {}), or let this one take its place with "
          "--replace-volumes, or keep what is there with --no-volumes",
          wanted.name, wanted.name));
      return {};
    }
    FERRY_TRY(const std::string user, other_user(docker, wanted.name, {}));
    if (!user.empty()) {
      out.obstacles.push_back(fmt::format("volume {} is in use on the destination by container {}", wanted.name, user));
      return {};
    }
    if (!empty) {
      out.differences.push_back(fmt::format("what volume {} held on the destination is replaced", wanted.name));
    }
    out.to_put_aside.push_back(there->mountpoint);
    return {};
  };
  for (const LeavingVolume& volume : asked.copied) {
    if (!volume.is_shm()) {
      FERRY_CHECK(look(volume.info, true));
    }
  }
  for (const VolumeInfo& volume : asked.made_only) {
    FERRY_CHECK(look(volume, false));
  }
  out.asked = std::move(asked);
  return out;
}

Result<void> make_volumes(Docker& docker, const ArrivingVolumes& plan, const std::string& move) {
  const auto make = [&](const VolumeInfo& volume) -> Result<void> {
    if (std::find(plan.to_make.begin(), plan.to_make.end(), volume.name) != plan.to_make.end()) {
      FERRY_CHECK(docker.create_volume(volume).during("making volume {} on the destination", volume.name));
    }
    return {};
  };
  for (const LeavingVolume& volume : plan.asked.copied) {
    FERRY_CHECK(make(volume.info));
  }
  for (const VolumeInfo& volume : plan.asked.made_only) {
    FERRY_CHECK(make(volume));
  }
  for (const std::string& directory : plan.to_put_aside) {
    const std::string aside = aside_of(directory, move);
    if (::rename(directory.c_str(), aside.c_str()) != 0) {
      return sys_fail(fmt::format("rename({}, {})", directory, aside));
    }
    if (::mkdir(directory.c_str(), 0755) != 0) {
      return sys_fail(fmt::format("mkdir({})", directory));
    }
  }
  return {};
}

Result<void> undo_volumes(Docker& docker, const std::vector<std::string>& made,
                          const std::vector<std::string>& put_aside, const std::string& move) {
  for (const std::string& directory : put_aside) {
    const std::string aside = aside_of(directory, move);
    std::error_code failed;
    if (!fs::exists(fs::symlink_status(aside, failed))) {
      continue;
    }
    fs::remove_all(directory, failed);
    if (::rename(aside.c_str(), directory.c_str()) != 0) {
      return sys_fail(fmt::format("rename({}, {})", aside, directory));
    }
  }
  for (const std::string& name : made) {
    if (auto removed = docker.remove_volume(name); !removed && removed.error().kind != Kind::gone) {
      return std::move(removed).during("removing volume {}", name);
    }
  }
  return {};
}

Result<void> forget_aside(const std::vector<std::string>& put_aside, const std::string& move) {
  for (const std::string& directory : put_aside) {
    std::error_code failed;
    fs::remove_all(aside_of(directory, move), failed);
    if (failed) {
      return fail(kind_of_errno(failed.value()), "removing {}: {}", aside_of(directory, move), failed.message());
    }
  }
  return {};
}

}  // namespace ferry::container
