#include "state/mount/propagation.h"

#include <sys/mount.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>

#include "state/mount/mountinfo.h"
#include "sys/mount_api.h"

namespace ferry::state::mount {
namespace {

struct Group {
  std::vector<Placed> members;
  std::vector<Placed> slaves;  // those that are no peers of each other
  std::uint32_t master = 0;
  bool outer = false;  // joined already: it has members outside of the tree
  int from = -1;       // the member that the others get their group from
};

std::string describe(const Placed& p) { return fmt::format("mount {}", p.entry->mountpoint()); }

// MOVE_MOUNT_SET_GROUP wants a mount that shows at least what the other one shows (do_set_group in
// fs/namespace.c).
const Placed* widest(const Group& group) {
  for (const Placed& candidate : group.members) {
    const auto covers = [&](const Placed& p) {
      return p.entry->root() == candidate.entry->root() || is_below(p.entry->root(), candidate.entry->root());
    };
    if (std::all_of(group.members.begin(), group.members.end(), covers) &&
        std::all_of(group.slaves.begin(), group.slaves.end(), covers)) {
      return &candidate;
    }
  }
  return nullptr;
}

const Placed* outer_member(const Group& group) {
  return &*std::find_if(group.members.begin(), group.members.end(), [](const Placed& p) { return p.joined; });
}

Result<void> copy_group(int from, const Placed& to) {
  FERRY_CHECK(sys::set_mount_attributes(to.mount, 0, 0, MS_PRIVATE).during("{}", describe(to)));
  return sys::copy_mount_group(from, to.mount).during("{}", describe(to));
}

// A master outside of the tree came with the clones of mounts out there; what the tree itself made of these
// gets it from them.
Result<void> share_outer_masters(const std::vector<Placed>& mounts) {
  for (const Placed& p : mounts) {
    if (!needs_donor(p, mounts)) {
      continue;
    }
    const Placed* donor = donor_of(p, mounts);
    if (donor == nullptr) {
      return fail(Kind::unsupported, "{} has a master outside of the tree, and no mount from there brings it along",
                  describe(p));
    }
    auto copied = copy_group(donor->mount, p);
    // EINVAL: out there nothing is shared any more, so there is nothing to be a slave of.
    if (!copied.has_value() && copied.error().os_errno != EINVAL) {
      return copied;
    }
    if (copied.has_value()) {
      FERRY_CHECK(sys::set_mount_attributes(p.mount, 0, 0, MS_SLAVE).during("{}", describe(p)));
    }
  }
  return {};
}

Result<void> make_group(Group& group, const std::map<std::uint32_t, Group>& groups,
                        const std::function<Result<int>(const pb::MntEntry&)>& whole) {
  const Placed* first = group.outer ? outer_member(group) : widest(group);
  if (first != nullptr) {
    group.from = first->mount;
  } else {
    // None of its members shows all that the others do: one that does is a member for the time being.
    FERRY_TRY(group.from, whole(*group.members.front().entry));
  }
  if (group.outer) {
    for (const Placed& member : group.members) {
      if (!member.joined) {
        FERRY_CHECK(copy_group(group.from, member));
      }
    }
  } else {
    if (const auto master = groups.find(group.master); master != groups.end()) {
      const Placed from{group.members.front().entry, group.from};
      FERRY_CHECK(copy_group(master->second.from, from));
      FERRY_CHECK(sys::set_mount_attributes(group.from, 0, 0, MS_SLAVE).during("{}", describe(from)));
    }
    FERRY_CHECK(sys::set_mount_attributes(group.from, 0, 0, MS_SHARED));
    for (const Placed& member : group.members) {
      if (member.mount != group.from) {
        FERRY_CHECK(copy_group(group.from, member));
      }
    }
  }
  for (const Placed& slave : group.slaves) {
    FERRY_CHECK(copy_group(group.from, slave));
    FERRY_CHECK(sys::set_mount_attributes(slave.mount, 0, 0, MS_SLAVE).during("{}", describe(slave)));
  }
  return {};
}

}  // namespace

bool needs_donor(const Placed& p, const std::vector<Placed>& all) {
  const std::uint32_t master = p.entry->master_id();
  return master != 0 && !p.from_outside && !p.joined &&
         std::none_of(all.begin(), all.end(), [&](const Placed& other) { return other.entry->shared_id() == master; });
}

const Placed* donor_of(const Placed& p, const std::vector<Placed>& all) {
  const auto donor = std::find_if(all.begin(), all.end(), [&](const Placed& d) {
    return d.from_outside && d.entry->master_id() == p.entry->master_id() &&
           d.entry->root_dev() == p.entry->root_dev() &&
           (d.entry->root() == p.entry->root() || is_below(p.entry->root(), d.entry->root()));
  });
  return donor == all.end() ? nullptr : &*donor;
}

Result<void> restore_propagation(const std::vector<Placed>& mounts,
                                 const std::function<Result<int>(const pb::MntEntry&)>& whole) {
  std::map<std::uint32_t, Group> groups;  // by shared_id
  for (const Placed& p : mounts) {
    if (p.entry->shared_id() != 0) {
      Group& group = groups[p.entry->shared_id()];
      group.members.push_back(p);
      group.master = p.entry->master_id();
      group.outer = group.outer || p.joined;
    }
  }
  for (const Placed& p : mounts) {
    if (p.entry->shared_id() == 0 && p.entry->master_id() != 0 && groups.contains(p.entry->master_id())) {
      groups.at(p.entry->master_id()).slaves.push_back(p);
    }
  }
  // For the choice of who hands it on, a group of slaves counts as slaves.
  for (auto& [id, group] : groups) {
    const auto master = groups.find(group.master);
    if (master != groups.end()) {
      for (const Placed& member : group.members) {
        master->second.slaves.push_back(member);
      }
    }
  }
  FERRY_CHECK(share_outer_masters(mounts));
  // Masters come before their slaves; a group whose master is outside of the tree is ready at once.
  std::set<std::uint32_t> ready;
  while (ready.size() < groups.size()) {
    const auto next = std::find_if(groups.begin(), groups.end(), [&](const auto& item) {
      return !ready.contains(item.first) &&
             (!groups.contains(item.second.master) || ready.contains(item.second.master));
    });
    if (next == groups.end()) {
      return fail(Kind::corrupt, "mountpoints: peer groups are masters of each other in a circle");
    }
    FERRY_CHECK(make_group(next->second, groups, whole));
    ready.insert(next->first);
  }
  for (const Placed& p : mounts) {
    if ((p.entry->flags() & MS_UNBINDABLE) != 0) {
      FERRY_CHECK(sys::set_mount_attributes(p.mount, 0, 0, MS_UNBINDABLE).during("{}", describe(p)));
    }
  }
  return {};
}

}  // namespace ferry::state::mount
