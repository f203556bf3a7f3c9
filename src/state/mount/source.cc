#include "state/mount/source.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "state/mount/fstype.h"
#include "state/mount/mount.h"
#include "state/nsids/nsids.h"
#include "sys/mount_api.h"

namespace ferry::state::mount {
namespace {

constexpr std::pair<std::uint32_t, const char*> kSuperblockWords[] = {
    {MS_SYNCHRONOUS, "sync"}, {MS_DIRSYNC, "dirsync"}, {MS_LAZYTIME, "lazytime"}};

std::string type_name(const pb::MntEntry& entry) {
  if (entry.fstype() == pb::FSTYPE_AUTO) {
    return entry.fsname();
  }
  return std::string(fs_kind(static_cast<pb::FsType>(entry.fstype())).name);
}

// What follows a prefix in options.external.
std::optional<std::string> named(const RestoreOptions& options, const std::string& prefix) {
  for (const std::string& external : options.external) {
    if (external.starts_with(prefix)) {
      return external.substr(prefix.size());
    }
  }
  return std::nullopt;
}

constexpr std::string_view kHierarchyFlags[] = {"noprefix",      "clone_children", "cpuset_v2_mode", "xattr",
                                                "release_agent", "favordynmods",   "nofavordynmods"};

}  // namespace

std::vector<Parameter> parameters_of(const pb::MntEntry& entry) {
  std::vector<Parameter> out;
  const bool cgroup = entry.fstype() == pb::FSTYPE_CGROUP;
  bool named_only = cgroup;
  std::string_view rest = entry.options();
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    const std::string_view word = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    // newinstance: what every mount of devpts is since Linux 4.7.  seclabel: a statement, not an option.
    if (word.empty() || word == "newinstance" || word == "seclabel") {
      continue;
    }
    const std::size_t equals = word.find('=');
    const std::string_view key = word.substr(0, equals);
    // Controllers and name say which hierarchy it is; the rest is a property of the hierarchy that is there.
    if (cgroup && std::find(std::begin(kHierarchyFlags), std::end(kHierarchyFlags), key) != std::end(kHierarchyFlags)) {
      continue;
    }
    if (equals == std::string_view::npos) {
      out.push_back({std::string(word), std::nullopt});
      named_only = false;
    } else {
      out.push_back({std::string(key), std::string(word.substr(equals + 1))});
    }
  }
  if (named_only) {
    out.push_back({"none", std::nullopt});  // cgroups(7): a hierarchy without controllers
  }
  return out;
}

Result<UniqueFd> make_superblock(const pb::MntEntry& entry) {
  const std::string type = type_name(entry);
  FERRY_TRY(const UniqueFd fs, sys::fs_open(type));
  FERRY_CHECK(sys::fs_set_string(fs.get(), "source", entry.source()));
  const Making making = fs_kind(static_cast<pb::FsType>(entry.fstype())).making;
  if (making == Making::fresh || making == Making::of_layers || making == Making::foreign) {
    for (const Parameter& parameter : parameters_of(entry)) {
      FERRY_CHECK(parameter.value.has_value() ? sys::fs_set_string(fs.get(), parameter.key, *parameter.value)
                                              : sys::fs_set_flag(fs.get(), parameter.key));
    }
  }
  // A tmpfs gets its content first; superblocks that are there anyway are not ours to change.
  if ((entry.sb_flags() & MS_RDONLY) != 0 && making != Making::of_kernel && entry.fstype() != pb::FSTYPE_TMPFS) {
    FERRY_CHECK(sys::fs_set_flag(fs.get(), "ro"));
  }
  for (const auto& [bit, word] : kSuperblockWords) {
    if ((entry.sb_flags() & bit) != 0 && making != Making::of_kernel) {
      FERRY_CHECK(sys::fs_set_flag(fs.get(), word));
    }
  }
  FERRY_CHECK(sys::fs_create(fs.get()));
  return sys::fs_mount(fs.get(), type);
}

Result<UniqueFd> make_superblock_in(RestoreTask& task, const pb::MntEntry& entry) {
  tracee::Batch batch;
  const tracee::Value fs =
      batch.must("fsopen", SYS_fsopen, {batch.string(type_name(entry)), static_cast<int>(FSOPEN_CLOEXEC)});
  batch.must("fsconfig(source)", SYS_fsconfig,
             {fs, static_cast<int>(FSCONFIG_SET_STRING), batch.string("source"), batch.string(entry.source()), 0});
  for (const Parameter& parameter : parameters_of(entry)) {
    if (parameter.value.has_value()) {
      batch.must(
          "fsconfig(set string)", SYS_fsconfig,
          {fs, static_cast<int>(FSCONFIG_SET_STRING), batch.string(parameter.key), batch.string(*parameter.value), 0});
    } else {
      batch.must("fsconfig(set flag)", SYS_fsconfig,
                 {fs, static_cast<int>(FSCONFIG_SET_FLAG), batch.string(parameter.key), 0, 0});
    }
  }
  if ((entry.sb_flags() & MS_RDONLY) != 0 && entry.fstype() == pb::FSTYPE_PROC) {
    batch.must("fsconfig(ro)", SYS_fsconfig, {fs, static_cast<int>(FSCONFIG_SET_FLAG), batch.string("ro"), 0, 0});
  }
  batch.must("fsconfig(create)", SYS_fsconfig, {fs, static_cast<int>(FSCONFIG_CMD_CREATE), 0, 0, 0});
  const tracee::Value mount = batch.must("fsmount", SYS_fsmount, {fs, static_cast<int>(FSMOUNT_CLOEXEC), 0});
  batch.must("close", SYS_close, {fs});
  FERRY_TRY(const tracee::Replies replies, task.process.run(task.leader(), batch));
  const auto remote = static_cast<int>(replies[mount]);

  const long pidfd = ::syscall(SYS_pidfd_open, task.pid.value, 0);
  if (pidfd < 0) {
    return sys_fail(fmt::format("pidfd_open(pid {})", task.pid));
  }
  const UniqueFd process(static_cast<int>(pidfd));
  const long fd = ::syscall(SYS_pidfd_getfd, process.get(), remote, 0);
  if (fd < 0) {
    return sys_fail(fmt::format("pidfd_getfd(pid {} fd {})", task.pid, remote));
  }
  UniqueFd out(static_cast<int>(fd));
  tracee::Batch close;
  close.must("close", SYS_close, {remote});
  FERRY_CHECK(task.process.run(task.leader(), close));
  return out;
}

Result<UniqueFd> mount_device(const pb::MntEntry& entry, const std::string& device) {
  FERRY_TRY(const UniqueFd fs, sys::fs_open(entry.fsname()));
  FERRY_CHECK(sys::fs_set_string(fs.get(), "source", device));
  if ((entry.sb_flags() & MS_RDONLY) != 0) {
    FERRY_CHECK(sys::fs_set_flag(fs.get(), "ro"));
  }
  FERRY_CHECK(sys::fs_create(fs.get()).during("mounting {}", device));
  return sys::fs_mount(fs.get(), entry.fsname());
}

Result<std::optional<std::string>> external_path(const pb::MntEntry& entry, const RestoreOptions& options) {
  std::string key = entry.ext_key();
  if (key.empty() && entry.ext_mount()) {
    key = entry.root();  // sets of old versions
  }
  if (key.empty()) {
    return std::optional<std::string>();
  }
  if (key == kExternalDevice) {
    if (auto path = named(options, entry.source() + ":")) {
      return path;
    }
    return fail(Kind::invalid, "mount {} is the block device {}, for which no path was given (--external {}:PATH)",
                entry.mountpoint(), entry.source(), entry.source());
  }
  if (key == kAutogenerated) {
    return std::optional<std::string>(entry.source());
  }
  for (const ExternalMount& external : options.external_mounts) {
    if (external.key == key) {
      return std::optional<std::string>(external.value);
    }
  }
  if (auto path = external_key(options, "mnt", key)) {
    return path;
  }
  return fail(Kind::invalid,
              "mount {} is external under the key {}, for which no path was given (--external mnt[{}]:PATH)",
              entry.mountpoint(), key, key);
}

}  // namespace ferry::state::mount
