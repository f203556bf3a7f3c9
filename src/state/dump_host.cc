#include "state/dump_host.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "state/cgroup/membership.h"
#include "sys/file.h"

namespace ferry::state {

Result<DumpHost::Place> DumpHost::place_of(const std::string& proc) {
  FERRY_TRY(const UniqueFd directory, sys::open(proc, O_PATH | O_DIRECTORY));
  Place out;
  std::size_t i = 0;
  for (const char* name : {"ns/net", "ns/uts", "ns/ipc", "ns/mnt", "ns/cgroup"}) {
    struct stat st;
    if (::fstatat(directory.get(), name, &st, 0) != 0) {
      return sys_fail(fmt::format("stat({}/{})", proc, name));
    }
    out.namespaces.at(i++) = st.st_ino;
  }
  struct statx root;
  if (::statx(directory.get(), "root", AT_NO_AUTOMOUNT, STATX_INO | STATX_MNT_ID, &root) != 0) {
    return sys_fail(fmt::format("statx({}/root)", proc));
  }
  out.device = std::uint64_t{root.stx_dev_major} << 32 | root.stx_dev_minor;
  out.inode = root.stx_ino;
  out.mount = root.stx_mnt_id;
  return out;
}

Result<void> DumpHost::prepare(HostPid root, bool cgroups) {
  FERRY_TRY(own_, place_of("/proc/self"));
  entered_ = own_;
  FERRY_CHECK(settle(root));
  FERRY_TRY(const std::string text, sys::read_file("/proc/self/mountinfo"));
  FERRY_TRY(mounts_, mount::parse_mountinfo(text));
  if (!cgroups) {
    return {};
  }
  FERRY_TRY(const std::string membership, sys::read_file("/proc/self/cgroup"));
  FERRY_TRY(const auto own, cgroup::parse_membership(membership));
  for (const auto& [name, path] : own) {
    FERRY_CHECK(hierarchy(name));
  }
  return {};
}

Result<void> DumpHost::settle(HostPid root) {
  FERRY_TRY(const Place now, place_of(fmt::format("/proc/{}", root)));
  if (now == entered_) {
    return {};
  }
  FERRY_CHECK(inside_.enter(root));
  entered_ = now;
  return {};
}

Result<const cgroup::Hierarchy*> DumpHost::hierarchy(const std::string& name) {
  const auto found = hierarchies_.find(name);
  if (found != hierarchies_.end()) {
    return &found->second;
  }
  FERRY_TRY(cgroup::Hierarchy opened, cgroup::Hierarchy::open(name, mounts_));
  return &hierarchies_.emplace(name, std::move(opened)).first->second;
}

}  // namespace ferry::state
