#include "state/dump_host.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

#include "state/cgroup/membership.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state {

Result<DumpHost::Place> DumpHost::place_of(const std::string& proc) {
  FERRY_TRY(const UniqueFd directory, sys::open(proc, O_PATH | O_DIRECTORY));
  Place out{};
  std::size_t i = 0;
  for (const char* name : {"ns/net", "ns/uts", "ns/ipc", "ns/mnt", "ns/cgroup"}) {
    struct stat st;
    if (::fstatat(directory.get(), name, &st, 0) != 0) {
      return sys_fail(fmt::format("stat({}/{})", proc, name));
    }
    out.at(i++) = st.st_ino;
  }
  return out;
}

Result<void> DumpHost::prepare(HostPid root, bool cgroups, const std::string& yard) {
  yard_ = yard;
  FERRY_TRY(own_, place_of("/proc/self"));
  entered_ = own_;
  FERRY_TRY(own_namespaces_, state::own_namespaces());
  FERRY_TRY(proc_, sys::open("/proc", O_PATH | O_DIRECTORY));
  FERRY_CHECK(settle(root));
  FERRY_TRY(const std::string text, sys::read_file("/proc/self/mountinfo"));
  FERRY_TRY(mounts_, mount::parse_mountinfo(text));
  FERRY_TRY(clocks_, timens::this_host());
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
  FERRY_CHECK(inside_.enter_namespaces(root));
  FERRY_CHECK(queues_.open(inside_));
  FERRY_CHECK(undos_.prepare(inside_));
  entered_ = now;
  return {};
}

Result<void> DumpHost::expect(HostPid pid) {
  const std::size_t before = others_.size();
  FERRY_TRY(Inside* const inside, inside_of(pid));
  return others_.size() > before ? undos_.prepare(*inside) : Result<void>();
}

Result<Inside*> DumpHost::inside_of(HostPid pid) {
  FERRY_TRY(const Place place, place_of(fmt::format("/proc/{}", pid)));
  if (place == entered_) {
    return &inside_;
  }
  std::unique_ptr<Inside>& inside = others_[place];
  if (inside == nullptr) {
    auto fresh = std::make_unique<Inside>();
    FERRY_CHECK(fresh->enter_namespaces(pid));
    inside = std::move(fresh);
  }
  return inside.get();
}

Result<Inside*> DumpHost::inside_network(HostPid root, int ns) {
  auto fresh = std::make_unique<Inside>();
  FERRY_CHECK(fresh->enter_namespaces(root));
  FERRY_CHECK(fresh->join({{ns, CLONE_NEWNET}}));
  return in_networks_.emplace_back(std::move(fresh)).get();
}

Result<std::string> DumpHost::read_of_thread(const std::string& path) const {
  return sys::read_file_at(proc_.get(), "thread-self/" + path);
}

Result<const cgroup::Hierarchy*> DumpHost::hierarchy(const std::string& name) {
  const auto found = hierarchies_.find(name);
  if (found != hierarchies_.end()) {
    return &found->second;
  }
  FERRY_TRY(cgroup::Hierarchy opened,
            yard_.empty() ? cgroup::Hierarchy::open(name, mounts_) : cgroup::Hierarchy::open_in(yard_, name));
  return &hierarchies_.emplace(name, std::move(opened)).first->second;
}

}  // namespace ferry::state
