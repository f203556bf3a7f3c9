#include "state/mount/propagation.h"

#include <sys/mount.h>

#include <map>
#include <set>

#include "sys/mount_api.h"

namespace ferry::state::mount {
namespace {

struct Member {
  const pb::MntEntry* entry;
  int mount;
};

// Source of the group for its other members: MOVE_MOUNT_SET_GROUP wants a mount that shows at least as much.
const Member& widest(const std::vector<Member>& members) {
  const Member* best = &members.front();
  for (const Member& member : members) {
    if (member.entry->root().size() < best->entry->root().size()) {
      best = &member;
    }
  }
  return *best;
}

}  // namespace

Result<void> restore_propagation(const std::vector<const pb::MntEntry*>& entries, const std::vector<UniqueFd>& made,
                                 int root, std::size_t root_index) {
  std::map<std::uint32_t, std::vector<Member>> groups;  // by shared_id
  std::map<std::uint32_t, std::vector<Member>> slaves;  // by master_id, those that are no peers of each other
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Member member{entries[i], i == root_index ? root : made[i].get()};
    if (member.mount < 0) {
      continue;
    }
    if (entries[i]->shared_id() != 0) {
      groups[entries[i]->shared_id()].push_back(member);
    } else if (entries[i]->master_id() != 0) {
      slaves[entries[i]->master_id()].push_back(member);
    }
  }
  // Masters come before their slaves; a group whose master is outside of the tree is ready at once.
  std::set<std::uint32_t> ready;
  while (ready.size() < groups.size()) {
    bool progress = false;
    for (const auto& [id, members] : groups) {
      const Member& first = widest(members);
      const std::uint32_t master = first.entry->master_id();
      if (ready.contains(id) || (groups.contains(master) && !ready.contains(master))) {
        continue;
      }
      if (groups.contains(master)) {
        FERRY_CHECK(sys::copy_mount_group(widest(groups.at(master)).mount, first.mount)
                        .during("mount {}", first.entry->mountpoint()));
        FERRY_CHECK(sys::set_mount_attributes(first.mount, 0, 0, MS_SLAVE));
      }
      FERRY_CHECK(sys::set_mount_attributes(first.mount, 0, 0, MS_SHARED));
      for (const Member& member : members) {
        if (member.mount != first.mount) {
          FERRY_CHECK(sys::set_mount_attributes(member.mount, 0, 0, MS_PRIVATE));
          FERRY_CHECK(sys::copy_mount_group(first.mount, member.mount)
                          .during("mount {}", member.entry->mountpoint()));
        }
      }
      ready.insert(id);
      progress = true;
    }
    if (!progress) {
      return fail(Kind::corrupt, "mountpoints: peer groups are masters of each other in a circle");
    }
  }
  for (const auto& [id, members] : slaves) {
    if (!groups.contains(id)) {
      continue;
    }
    for (const Member& member : members) {
      FERRY_CHECK(sys::set_mount_attributes(member.mount, 0, 0, MS_PRIVATE));
      FERRY_CHECK(sys::copy_mount_group(widest(groups.at(id)).mount, member.mount)
                      .during("mount {}", member.entry->mountpoint()));
      FERRY_CHECK(sys::set_mount_attributes(member.mount, 0, 0, MS_SLAVE));
    }
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const int mount = i == root_index ? root : made[i].get();
    if (mount >= 0 && (entries[i]->flags() & MS_UNBINDABLE) != 0) {
      FERRY_CHECK(sys::set_mount_attributes(mount, 0, 0, MS_UNBINDABLE));
    }
  }
  return {};
}

}  // namespace ferry::state::mount
