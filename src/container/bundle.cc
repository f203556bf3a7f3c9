#include "container/bundle.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "container/json.h"
#include "container/small_file.h"

namespace ferry::container {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> out;
  while (!text.empty()) {
    const auto end = std::min(text.find(separator), text.size());
    out.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

// proc(5), /proc/PID/mountinfo: space, tab, newline and backslash stand as octal escapes.
std::string unescape(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](std::size_t at) { return at < text.size() && text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
      out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

Result<std::string> read_link(const std::string& path) {
  std::array<char, 4096> buffer{};
  const ssize_t got = ::readlink(path.c_str(), buffer.data(), buffer.size());
  if (got < 0) {
    return sys_fail(fmt::format("readlink({})", path));
  }
  return std::string(buffer.data(), static_cast<std::size_t>(got));
}

Result<HostPid> parent_of(HostPid pid) {
  FERRY_TRY(const std::string text, read_small_file(fmt::format("/proc/{}/stat", pid)));
  // proc(5): comm may hold blanks and brackets; state and parent follow its last bracket.
  const auto bracket = text.rfind(')');
  const auto fields =
      split(bracket == std::string::npos ? std::string_view() : std::string_view(text).substr(bracket + 1), ' ');
  if (fields.size() < 3) {
    return fail(Kind::corrupt, "/proc/{}/stat is not understood", pid);
  }
  return HostPid(static_cast<pid_t>(std::atoi(fields[2].c_str())));
}

// Where the host has a cgroup hierarchy mounted.
Result<std::string> freezer_of(HostPid init) {
  FERRY_TRY(const std::string membership, read_small_file(fmt::format("/proc/{}/cgroup", init)));
  FERRY_TRY(const std::string mounts, read_small_file("/proc/self/mountinfo"));
  const std::string v1 = cgroup_path(membership, "freezer");
  const std::string v2 = cgroup_path(membership, "");
  for (const auto& [type, path, probe] :
       {std::tuple{"cgroup", v1, "freezer.state"}, std::tuple{"cgroup2", v2, "cgroup.freeze"}}) {
    if (path.empty()) {
      continue;
    }
    for (const MountPoint& mount : parse_mountinfo(mounts)) {
      const std::string directory = mount.path + path;
      if (mount.type == type && ::access((directory + "/" + probe).c_str(), F_OK) == 0) {
        return directory;
      }
    }
  }
  return fail(Kind::unsupported, "the container has no freezer cgroup that can be seen from here (neither v1 nor v2)");
}

Result<std::vector<std::string>> start_descriptors(const ShimInfo& shim, const std::string& id) {
  FERRY_TRY(const std::string options_text, read_small_file(shim.bundle + "/options.json"));
  FERRY_TRY(const Json options, parse_json(options_text, shim.bundle + "/options.json"));
  std::string root = json_text(options, "root");
  if (root.empty()) {
    root = "/run/containerd/runc";  // what the shim gives runc when it was told nothing
  }
  // Docker's name space of containerd is the bundle's parent directory.
  const std::string name_space = std::filesystem::path(shim.bundle).parent_path().filename();
  const std::string state_path = fmt::format("{}/{}/{}/state.json", root, name_space, id);
  FERRY_TRY(const std::string state_text, read_small_file(state_path));
  FERRY_TRY(const Json state, parse_json(state_text, state_path));
  std::vector<std::string> out = json_texts(json_at(state, "external_descriptors"));
  if (out.size() != 3) {
    return fail(Kind::corrupt, "{} does not say what the container's descriptors 0, 1 and 2 were", state_path);
  }
  return out;
}

}  // namespace

Result<ShimInfo> find_shim(HostPid init, const std::string& id) {
  ShimInfo out;
  FERRY_TRY(out.pid, parent_of(init));
  FERRY_TRY(const std::string command_line, read_small_file(fmt::format("/proc/{}/cmdline", out.pid)));
  const std::vector<std::string> words = split(command_line, '\0');
  const bool is_shim = !words.empty() && std::filesystem::path(words.front()).filename() == "containerd-shim-runc-v2";
  if (!is_shim) {
    return fail(Kind::unsupported, "process {} is not run by containerd's shim for runc (but by {})", init,
                words.empty() ? "a kernel thread" : words.front());
  }
  for (std::size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == "-address") {
      out.containerd_address = words[i + 1];
    }
  }
  FERRY_TRY(out.bundle, read_link(fmt::format("/proc/{}/cwd", out.pid)));
  if (std::filesystem::path(out.bundle).filename() != id) {
    return fail(Kind::unsupported, "the bundle of container {} was not found: its shim works in {}", id, out.bundle);
  }
  return out;
}

Result<BundleConfig> parse_bundle_config(std::string_view config_json) {
  FERRY_TRY(const Json root, parse_json(config_json, "the bundle's config.json"));
  BundleConfig out;
  out.root = json_text(json_at(root, "root"), "path");
  if (out.root.empty()) {
    return fail(Kind::corrupt, "the bundle's config.json names no root");
  }
  if (const Json& mounts = json_at(root, "mounts"); mounts.is_array()) {
    for (const Json& mount : mounts) {
      const std::vector<std::string> options = json_texts(json_at(mount, "options"));
      const bool bind =
          json_text(mount, "type") == "bind" ||
          std::any_of(options.begin(), options.end(), [](const std::string& o) { return o == "bind" || o == "rbind"; });
      if (bind) {
        out.bind_destinations.push_back(json_text(mount, "destination"));
      } else if (json_text(mount, "type") == "cgroup") {
        out.cgroup_destinations.push_back(json_text(mount, "destination"));
      }
    }
  }
  const Json& linux = json_at(root, "linux");
  out.masked_paths = json_texts(json_at(linux, "maskedPaths"));
  if (const Json& namespaces = json_at(linux, "namespaces"); namespaces.is_array()) {
    for (const Json& item : namespaces) {
      if (!json_text(item, "path").empty()) {
        out.joined_namespaces.push_back(json_text(item, "type"));
      }
    }
  }
  return out;
}

std::vector<MountPoint> parse_mountinfo(std::string_view mountinfo) {
  std::vector<MountPoint> out;
  for (const std::string& line : split(mountinfo, '\n')) {
    const auto fields = split(line, ' ');
    const auto separator = std::find(fields.begin(), fields.end(), "-");
    if (fields.size() < 5 || separator == fields.end() || separator + 1 == fields.end()) {
      continue;
    }
    out.push_back({.path = unescape(fields[4]), .type = *(separator + 1), .root = unescape(fields[3])});
  }
  return out;
}

std::string cgroup_path(std::string_view cgroup_file, std::string_view controller) {
  for (const std::string& line : split(cgroup_file, '\n')) {
    const auto first = line.find(':');
    const auto second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const auto names = split(controllers, ',');
    if (controller.empty() ? controllers.empty() : std::find(names.begin(), names.end(), controller) != names.end()) {
      return line.substr(second + 1);
    }
  }
  return {};
}

std::string encode_descriptors(const std::vector<std::string>& descriptors) { return json_dump(Json(descriptors)); }

Result<std::vector<std::string>> decode_descriptors(std::string_view json) {
  FERRY_TRY(const Json list, parse_json(json, "descriptors.json"));
  std::vector<std::string> out = json_texts(list);
  if (out.size() != 3) {
    return fail(Kind::corrupt, "descriptors.json does not name three descriptors");
  }
  return out;
}

Result<RuntimeFacts> runtime_facts(const ShimInfo& shim, HostPid init, const std::string& id) {
  FERRY_TRY(const std::string config_text, read_small_file(shim.bundle + "/config.json"));
  FERRY_TRY(BundleConfig config, parse_bundle_config(config_text));
  RuntimeFacts out;
  out.root = config.root.starts_with('/') ? config.root : shim.bundle + "/" + config.root;
  out.joined_namespaces = std::move(config.joined_namespaces);
  FERRY_TRY(const std::string mountinfo, read_small_file(fmt::format("/proc/{}/mountinfo", init)));
  const std::vector<MountPoint> mounts = parse_mountinfo(mountinfo);
  const auto mounted = [&](const std::string& path) {
    return std::any_of(mounts.begin(), mounts.end(), [&](const MountPoint& m) { return m.path == path; });
  };
  for (const std::string& path : config.bind_destinations) {
    if (mounted(path)) {
      out.external_mounts.push_back(path);
    }
  }
  for (const MountPoint& mount : mounts) {
    // runc binds each v1 controller from the host; v2 is mounted anew and belongs to the container.  What
    // hangs below a volume (-v /sys/fs/cgroup:/sys/fs/cgroup) it does not know of.
    const auto holds = [&](const std::string& path) { return mount.path.starts_with(path + "/"); };
    if (mount.type == "cgroup" &&
        std::any_of(config.cgroup_destinations.begin(), config.cgroup_destinations.end(), holds)) {
      out.external_mounts.push_back(mount.path);
    }
  }
  for (const std::string& path : config.masked_paths) {
    // A masked directory is a tmpfs of the container's own, a masked file is the host's /dev/null.
    struct stat info {};
    if (mounted(path) && ::stat(fmt::format("/proc/{}/root{}", init, path).c_str(), &info) == 0 &&
        !S_ISDIR(info.st_mode)) {
      out.masked_files.push_back(path);
    }
  }
  FERRY_TRY(out.freeze_cgroup, freezer_of(init));
  FERRY_TRY(out.descriptors, start_descriptors(shim, id));
  return out;
}

}  // namespace ferry::container
