#include "state/nsids/networks.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>

#include <algorithm>

#include "image/proto/inventory.pb.h"
#include "state/dump_host.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state {

Result<void> Networks::learn(DumpContext& context) {
  const std::uint32_t of_root = namespace_of(*context.root().ids, NsKind::net);
  std::map<std::uint32_t, bool> known;
  for (const auto& task : context.tasks) {
    if (task->zombie || task->ids == nullptr) {
      continue;
    }
    for (const NsKind kind : kAllNsKinds) {
      last_id_ = std::max(last_id_, namespace_of(*task->ids, kind));
    }
    last_id_ = std::max(last_id_, task->ids->ferry_time_for_children_ns_id());
    const std::uint32_t id = namespace_of(*task->ids, NsKind::net);
    if (known.emplace(id, true).second) {
      FERRY_TRY(UniqueFd ns, sys::open_at(task->proc.get(), "ns/net", O_RDONLY));
      FERRY_TRY(const struct stat st, sys::stat_fd(ns.get(), "ns/net"));
      by_inode_.emplace(st.st_ino, std::make_unique<Place>(Place{id, std::move(ns), id == of_root, true}));
    }
  }
  const std::uint64_t own = context.host.own_namespaces().at(static_cast<std::size_t>(NsKind::net));
  if (!by_inode_.contains(own)) {
    FERRY_TRY(const auto* inventory, context.set.one<pb::InventoryEntry>({image::Type::inventory}));
    FERRY_TRY(UniqueFd ns, sys::open("/proc/self/ns/net", O_RDONLY));
    const std::uint32_t id = namespace_of(inventory->root_ids(), NsKind::net);
    by_inode_.emplace(own, std::make_unique<Place>(Place{id, std::move(ns), false, true}));
  }
  return {};
}

Result<const Networks::Place*> Networks::of_socket(const std::string& subject, int socket, DumpContext& context) {
  if (by_inode_.empty()) {
    FERRY_CHECK(learn(context));
  }
  // sockios.h: a descriptor of the socket's network namespace (Linux 4.10).
  UniqueFd ns(::ioctl(socket, SIOCGSKNS));
  if (!ns) {
    return sys_fail(fmt::format("ioctl({}, SIOCGSKNS)", subject));
  }
  FERRY_TRY(const struct stat st, sys::stat_fd(ns.get(), subject));
  std::unique_ptr<Place>& place = by_inode_[st.st_ino];
  if (place == nullptr) {
    place = std::make_unique<Place>(Place{++last_id_, std::move(ns), false, false});
  }
  return place.get();
}

std::vector<const Networks::Place*> Networks::without_tasks() const {
  std::vector<const Place*> out;
  for (const auto& [inode, place] : by_inode_) {
    if (!place->lives) {
      out.push_back(place.get());
    }
  }
  return out;
}

}  // namespace ferry::state
