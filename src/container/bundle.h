// What the runtime below Docker knows about a running container: the OCI bundle and runc's state.
//
// containerd's shim, the parent of the container's first process, has the bundle as its current
// directory; so neither containerd's nor runc's directories have to be guessed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/ids.h"

namespace ferry::container {

struct ShimInfo {
  HostPid pid;
  std::string bundle;              // directory
  std::string containerd_address;  // its socket; empty if the shim does not say
};

// The shim of container `id` whose first process is `init`.  Errors: unsupported if the parent is none.
Result<ShimInfo> find_shim(HostPid init, const std::string& id);

// What a dump of the container needs to know, as runc would tell it.
struct RuntimeFacts {
  std::string root;                            // of the container's mount namespace
  std::vector<std::string> external_mounts;    // paths in the container that come from outside
  std::vector<std::string> masked_files;       // paths hidden by /dev/null
  std::string freeze_cgroup;                   // directory of the freezer, v1 or v2
  std::vector<std::string> descriptors;        // what 0, 1, 2 were at the start: "pipe:[123]", "/dev/null"
  std::vector<std::string> joined_namespaces;  // kinds taken from elsewhere by path: "network", "ipc"
};
Result<RuntimeFacts> runtime_facts(const ShimInfo& shim, HostPid init, const std::string& id);

// The parts on text.  `mountinfo` is /proc/PID/mountinfo of the container's first process; only what is
// a mount there counts.
struct BundleConfig {
  std::string root;
  std::vector<std::string> bind_destinations;
  std::vector<std::string> cgroup_destinations;  // where runc mounts the control groups
  std::vector<std::string> masked_paths;
  std::vector<std::string> joined_namespaces;
};
Result<BundleConfig> parse_bundle_config(std::string_view config_json);
struct MountPoint {
  std::string path;
  std::string type;
  std::string root;
};
std::vector<MountPoint> parse_mountinfo(std::string_view mountinfo);
// The path of a controller in /proc/PID/cgroup; controller "" is the v2 hierarchy.  Empty if none.
std::string cgroup_path(std::string_view cgroup_file, std::string_view controller);

// descriptors.json, as runc wants to find it beside the images.
std::string encode_descriptors(const std::vector<std::string>& descriptors);
Result<std::vector<std::string>> decode_descriptors(std::string_view json);

}  // namespace ferry::container
