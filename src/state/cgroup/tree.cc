#include "state/cgroup/tree.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "state/cgroup/membership.h"
#include "sys/file.h"
#include "sys/mount_api.h"

namespace ferry::state::cgroup {
namespace {

struct Controller {
  std::string_view name;
  std::vector<std::string_view> properties;
};

// What CRIU keeps, by controller, in the order in which it can be written again.
const std::vector<Controller>& controllers_v1() {
  static const std::vector<Controller> kTable = {
      {"cpu", {"cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.rt_period_us", "cpu.rt_runtime_us"}},
      {"memory",
       {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.swappiness", "memory.soft_limit_in_bytes",
        "memory.move_charge_at_immigrate", "memory.oom_control", "memory.use_hierarchy", "memory.kmem.limit_in_bytes",
        "memory.kmem.tcp.limit_in_bytes"}},
      {"cpuset",
       {"cpuset.cpus", "cpuset.mems", "cpuset.memory_migrate", "cpuset.cpu_exclusive", "cpuset.mem_exclusive",
        "cpuset.mem_hardwall", "cpuset.memory_spread_page", "cpuset.memory_spread_slab", "cpuset.sched_load_balance",
        "cpuset.sched_relax_domain_level"}},
      {"blkio",
       {"blkio.weight", "blkio.bfq.weight", "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device",
        "blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device"}},
      {"devices", {"devices.list"}},
      {"net_cls", {"net_cls.classid"}},
      {"net_prio", {"net_prio.ifpriomap"}},
      {"hugetlb", {"hugetlb.2MB.limit_in_bytes", "hugetlb.1GB.limit_in_bytes"}},
      {"pids", {"pids.max"}},
  };
  return kTable;
}

constexpr std::string_view kCommonV1[] = {"cgroup.clone_children", "notify_on_release", "cgroup.procs", "tasks"};
// The type comes first: a threaded group takes other controllers.
constexpr std::string_view kCommonV2[] = {"cgroup.type",
                                          "cgroup.subtree_control",
                                          "cgroup.max.descendants",
                                          "cgroup.max.depth",
                                          "cgroup.freeze",
                                          "cpu.weight",
                                          "cpu.idle",
                                          "cpu.max",
                                          "cpu.max.burst",
                                          "cpuset.cpus",
                                          "cpuset.mems",
                                          "cpuset.cpus.partition",
                                          "memory.min",
                                          "memory.low",
                                          "memory.high",
                                          "memory.max",
                                          "memory.swap.high",
                                          "memory.swap.max",
                                          "memory.oom.group",
                                          "pids.max",
                                          "io.weight",
                                          "io.max",
                                          "cgroup.procs",
                                          "cgroup.threads"};
// Several lines, each of which is written by itself.
constexpr std::string_view kByLine[] = {"net_prio.ifpriomap",
                                        "blkio.throttle.read_bps_device",
                                        "blkio.throttle.write_bps_device",
                                        "blkio.throttle.read_iops_device",
                                        "blkio.throttle.write_iops_device",
                                        "io.max"};

std::vector<std::string_view> properties_of(std::string_view hierarchy) {
  if (hierarchy.empty()) {
    return {std::begin(kCommonV2), std::end(kCommonV2)};
  }
  std::vector<std::string_view> out;
  for (const Controller& controller : controllers_v1()) {
    if (names_controller(hierarchy, controller.name)) {
      out.insert(out.end(), controller.properties.begin(), controller.properties.end());
    }
  }
  out.insert(out.end(), std::begin(kCommonV1), std::end(kCommonV1));
  return out;
}

// Present for their owner and mode: their content is the membership itself.
bool is_member_list(std::string_view property) {
  return property == "cgroup.procs" || property == "tasks" || property == "cgroup.threads";
}

std::string below_root(const std::string& path) { return path == "/" ? "." : path.substr(1); }

std::string trimmed(std::string text) {
  constexpr const char* kWhite = " \t\n";
  text.erase(text.find_last_not_of(kWhite) + 1);
  text.erase(0, text.find_first_not_of(kWhite));
  return text;
}

void put_permissions(const struct stat& st, pb::CgroupPerms& out) {
  out.set_mode(st.st_mode);
  out.set_uid(st.st_uid);
  out.set_gid(st.st_gid);
}

Result<void> give_permissions(int directory, const std::string& name, const pb::CgroupPerms& wanted) {
  // Sets of CRIU hold bytes that were never set for some properties: a mode that is no mode.
  if (!S_ISREG(wanted.mode()) && !S_ISDIR(wanted.mode())) {
    return {};
  }
  struct stat st;
  if (::fstatat(directory, name.c_str(), &st, 0) != 0) {
    return sys_fail(fmt::format("stat({})", name));
  }
  if ((st.st_uid != wanted.uid() || st.st_gid != wanted.gid()) &&
      ::fchownat(directory, name.c_str(), wanted.uid(), wanted.gid(), 0) != 0) {
    return sys_fail(fmt::format("chown({})", name));
  }
  if ((st.st_mode & 07777) != (wanted.mode() & 07777) &&
      ::fchmodat(directory, name.c_str(), wanted.mode() & 07777, 0) != 0) {
    return sys_fail(fmt::format("chmod({})", name));
  }
  return {};
}

Result<void> write_property(int directory, const std::string& name, const std::string& value) {
  if (name == "devices.list") {
    // The list is read in one file and written by two others (cgroup-v1/devices.rst).
    FERRY_CHECK(sys::write_file_at(directory, "devices.deny", "a"));
    for (std::size_t at = 0; at < value.size();) {
      const std::size_t end = std::min(value.find('\n', at), value.size());
      FERRY_CHECK(sys::write_file_at(directory, "devices.allow", value.substr(at, end - at)));
      at = end + 1;
    }
    return {};
  }
  if (std::find(std::begin(kByLine), std::end(kByLine), name) != std::end(kByLine)) {
    for (std::size_t at = 0; at < value.size();) {
      const std::size_t end = std::min(value.find('\n', at), value.size());
      FERRY_CHECK(sys::write_file_at(directory, name, value.substr(at, end - at)));
      at = end + 1;
    }
    return {};
  }
  if (name == "cgroup.type" && value != "threaded") {
    return {};  // what the kernel makes of a group by itself (cgroup-v2.rst)
  }
  if (name == "cgroup.subtree_control") {
    std::string words;
    for (std::size_t at = 0; at < value.size();) {
      const std::size_t end = std::min(value.find(' ', at), value.size());
      words += (words.empty() ? "+" : " +") + value.substr(at, end - at);
      at = end + 1;
    }
    return sys::write_file_at(directory, name, words);
  }
  return sys::write_file_at(directory, name, value);
}

// A mount point of the hierarchy that the host has anyway: mounting one and taking it down again waits for
// a grace period of the kernel, milliseconds that a frozen tree would notice.
Result<std::optional<UniqueFd>> find_mounted(const std::string& name, const std::vector<mount::Line>& lines) {
  for (const mount::Line& line : lines) {
    if (line.root != "/" || line.type != (name.empty() ? "cgroup2" : "cgroup")) {
      continue;
    }
    // The words of the name and of the options have to be the same set, a few others aside.
    bool all = true;
    for (std::size_t at = 0; at < name.size() && all;) {
      const std::size_t end = std::min(name.find(',', at), name.size());
      all = names_controller(line.options, name.substr(at, end - at));
      at = end + 1;
    }
    auto opened = all ? sys::open(line.mountpoint, O_RDONLY | O_DIRECTORY) : Result<UniqueFd>(UniqueFd());
    if (!all || !opened.has_value()) {
      continue;
    }
    struct statx st;
    // Something else may be mounted over it.
    if (::statx(opened->get(), "", AT_EMPTY_PATH, STATX_MNT_ID, &st) == 0 &&
        st.stx_mnt_id == static_cast<std::uint64_t>(line.id)) {
      return std::optional<UniqueFd>(std::move(*opened));
    }
  }
  return std::optional<UniqueFd>();
}

}  // namespace

// --cgroup-yard: a directory with a mount of each hierarchy below its name.
Result<Hierarchy> Hierarchy::open_in(const std::string& yard, const std::string& name) {
  const std::string below = name.empty() ? "unified" : name.starts_with("name=") ? name.substr(5) : name;
  auto root = sys::open(yard + "/" + below, O_RDONLY | O_DIRECTORY);
  if (!root.has_value() && name.empty()) {
    root = sys::open(yard, O_RDONLY | O_DIRECTORY);
  }
  FERRY_TRY(UniqueFd opened, std::move(root).during("looking for hierarchy \"{}\" in the cgroup yard", name));
  return Hierarchy(name, std::move(opened));
}

Result<Hierarchy> Hierarchy::open(const std::string& name) {
  FERRY_TRY(const std::string text, sys::read_file("/proc/self/mountinfo"));
  FERRY_TRY(const auto lines, mount::parse_mountinfo(text));
  return open(name, lines);
}

Result<Hierarchy> Hierarchy::open(const std::string& name, const std::vector<mount::Line>& mounts) {
  FERRY_TRY(auto mounted, find_mounted(name, mounts));
  if (mounted.has_value()) {
    return Hierarchy(name, std::move(*mounted));
  }
  const std::string type = name.empty() ? "cgroup2" : "cgroup";
  FERRY_TRY(const UniqueFd fs, sys::fs_open(type));
  bool controllers = false;
  for (std::size_t at = 0; at < name.size();) {
    const std::size_t end = std::min(name.find(',', at), name.size());
    const std::string word = name.substr(at, end - at);
    if (word.starts_with("name=")) {
      FERRY_CHECK(sys::fs_set_string(fs.get(), "name", word.substr(5)));
    } else {
      FERRY_CHECK(sys::fs_set_flag(fs.get(), word));
      controllers = true;
    }
    at = end + 1;
  }
  if (!name.empty() && !controllers) {
    FERRY_CHECK(sys::fs_set_flag(fs.get(), "none"));
  }
  FERRY_CHECK(sys::fs_create(fs.get()).during("opening cgroup hierarchy \"{}\"", name));
  FERRY_TRY(UniqueFd root, sys::fs_mount(fs.get(), type));
  return Hierarchy(name, std::move(root));
}

std::string Hierarchy::describe(const std::string& path) const {
  return fmt::format("cgroup {} of hierarchy \"{}\"", path, name_);
}

std::string Hierarchy::directory(const std::string& path) const {
  return fmt::format("/proc/self/fd/{}{}", root_.get(), path == "/" ? "" : path);
}

bool Hierarchy::has(const std::string& path) const {
  return ::faccessat(root_.get(), below_root(path).c_str(), F_OK, 0) == 0;
}

Result<void> Hierarchy::read(const std::string& path, bool deep, const std::vector<std::string>& more,
                             pb::CgroupDirEntry& out) const {
  FERRY_TRY(const UniqueFd directory, sys::open_at(root_.get(), below_root(path), O_RDONLY | O_DIRECTORY));
  FERRY_TRY(const struct stat own, sys::stat_fd(directory.get(), describe(path)));
  put_permissions(own, *out.mutable_dir_perms());
  auto properties = properties_of(name_);
  properties.insert(properties.end(), more.begin(), more.end());
  for (const std::string_view property : properties) {
    const std::string file(property);
    struct stat st;
    std::string value;
    if (is_member_list(property)) {
      if (::fstatat(directory.get(), file.c_str(), &st, 0) != 0) {
        continue;
      }
    } else {
      const auto opened = sys::open_at(directory.get(), file, O_RDONLY);
      if (!opened.has_value()) {
        continue;  // not every kernel, and not the root group, has every file
      }
      FERRY_TRY(st, sys::stat_fd(opened->get(), file));
      auto text = sys::read_all(opened->get(), file);
      if (!text.has_value()) {
        // Known to be unreadable in some states: -EINVAL of cpuset files, -EOPNOTSUPP of threaded groups.
        continue;
      }
      value = trimmed(std::move(*text));
    }
    if (property == "memory.oom_control") {
      // "oom_kill_disable 0\nunder_oom 0…": only the first can be written, as a bare number.
      const std::size_t blank = value.find(' ');
      value = blank == std::string::npos ? value : value.substr(blank + 1, value.find('\n') - blank - 1);
    }
    pb::CgroupPropEntry& entry = *out.add_properties();
    entry.set_name(file);
    entry.set_value(value);
    put_permissions(st, *entry.mutable_perms());
  }
  return deep ? read_below(path, more, out) : Result<void>();
}

Result<void> Hierarchy::read_below(const std::string& path, const std::vector<std::string>& more,
                                   pb::CgroupDirEntry& out) const {
  FERRY_TRY(const auto paths, children(path));
  for (const std::string& one : paths) {
    pb::CgroupDirEntry& child = *out.add_children();
    child.set_dir_name(one.substr(one.rfind('/') + 1));
    FERRY_CHECK(read(one, true, more, child));
  }
  return {};
}

Result<std::vector<std::string>> Hierarchy::children(const std::string& path) const {
  FERRY_TRY(const UniqueFd directory, sys::open_at(root_.get(), below_root(path), O_RDONLY | O_DIRECTORY));
  FERRY_TRY(const struct stat own, sys::stat_fd(directory.get(), describe(path)));
  std::vector<std::string> out;
  if (own.st_nlink == 2) {
    return out;  // kernfs counts the directories in a directory (kernfs_refresh_inode in fs/kernfs/inode.c)
  }
  FERRY_TRY(const auto names, sys::list_directory(directory.get(), "."));
  for (const std::string& name : names) {
    struct stat st;
    if (::fstatat(directory.get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode)) {
      out.push_back(path == "/" ? "/" + name : path + "/" + name);
    }
  }
  return out;
}

Result<std::string> Hierarchy::thread_list(const std::string& path) const {
  return sys::read_file_at(root_.get(), below_root(path) + (is_v2() ? "/cgroup.threads" : "/tasks"));
}

Result<Hierarchy> Hierarchy::duplicate() const {
  FERRY_TRY(UniqueFd root, sys::duplicate(root_.get()));
  return Hierarchy(name_, std::move(root));
}

void Hierarchy::remove(const std::string& path) const {
  (void)::unlinkat(root_.get(), below_root(path).c_str(), AT_REMOVEDIR);
}

Result<std::vector<std::string>> Hierarchy::make(const std::string& path) const {
  std::vector<std::string> made;
  for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    if (::mkdirat(root_.get(), below_root(part).c_str(), 0755) == 0) {
      made.push_back(part);
      // A fresh cpuset has no processors and takes no tasks until it is given some (cgroup-v1/cpusets.rst).
      if (names_controller(name_, "cpuset")) {
        const std::string parent = part.substr(0, std::max<std::size_t>(part.rfind('/'), 1));
        for (const char* file : {"cpuset.cpus", "cpuset.mems"}) {
          FERRY_TRY(const std::string value, sys::read_file_at(root_.get(), below_root(parent) + "/" + file));
          FERRY_CHECK(sys::write_file_at(root_.get(), below_root(part) + "/" + file, trimmed(value)));
        }
      }
    } else if (errno != EEXIST) {
      return sys_fail(fmt::format("mkdir({})", describe(part)));
    }
    if (end == std::string::npos) {
      return made;
    }
  }
}

Result<void> Hierarchy::set_properties(const std::string& path, const pb::CgroupDirEntry& entry,
                                       bool permissions) const {
  FERRY_TRY(const UniqueFd directory, sys::open_at(root_.get(), below_root(path), O_RDONLY | O_DIRECTORY));
  for (const pb::CgroupPropEntry& property : entry.properties()) {
    const std::string& name = property.name();
    if (name.find('/') != std::string::npos) {
      return fail(Kind::corrupt, "cgroup.img: \"{}\" is no property name", name);
    }
    if (::faccessat(directory.get(), name.c_str(), F_OK, 0) != 0) {
      continue;  // this kernel has no such file
    }
    if (permissions && property.has_perms()) {
      FERRY_CHECK(give_permissions(directory.get(), name, property.perms()).during("{}", describe(path)));
    }
    // The freezer is the engine's and the caller's to use: a set made of a frozen container says FROZEN.
    if (is_member_list(name) || name == "freezer.state" || name == "cgroup.freeze" || property.value().empty()) {
      continue;
    }
    const auto present = sys::read_file_at(directory.get(), name);
    if (present.has_value() && trimmed(*present) == property.value()) {
      continue;
    }
    FERRY_CHECK(write_property(directory.get(), name, property.value())
                    .during("setting {} of {} to \"{}\"", name, describe(path), property.value()));
  }
  if (permissions && entry.has_dir_perms()) {
    FERRY_CHECK(give_permissions(directory.get(), ".", entry.dir_perms()).during("{}", describe(path)));
  }
  return {};
}

Result<void> Hierarchy::put_process(const std::string& path, pid_t pid) const {
  return sys::write_file_at(root_.get(), below_root(path) + "/cgroup.procs", std::to_string(pid))
      .during("moving pid {} to {}", pid, describe(path));
}

Result<void> Hierarchy::put_thread(const std::string& path, pid_t tid) const {
  return sys::write_file_at(root_.get(), below_root(path) + (is_v2() ? "/cgroup.threads" : "/tasks"),
                            std::to_string(tid))
      .during("moving thread {} to {}", tid, describe(path));
}

}  // namespace ferry::state::cgroup
