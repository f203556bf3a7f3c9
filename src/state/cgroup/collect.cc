#include <algorithm>
#include <set>

#include "image/proto/inventory.pb.h"
#include "state/cgroup/cgroup.h"
#include "state/cgroup/membership.h"
#include "state/cgroup/placement.h"
#include "state/dump_host.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state::cgroup {
namespace {

constexpr std::uint32_t kOwnSet = 1;

pb::InventoryEntry* inventory_of(image::Set& set) {
  const auto& entries = set.entries({image::Type::inventory, 0});
  return entries.empty() ? nullptr : static_cast<pb::InventoryEntry*>(entries.front().message.get());
}

// The root of a cgroup namespace in each hierarchy, as we see it.  cgroup_namespaces(7) shows to those inside
// what is below it.
Result<std::map<std::string, std::string>> namespace_roots(DumpContext& context, const TreeNamespace& ns) {
  const DumpTask& task = *ns.task;
  const auto read = [&]() -> Result<Membership> {
    FERRY_TRY(const std::string text, sys::read_file_at(task.proc.get(), "cgroup"));
    return parse_membership(text);
  };
  FERRY_TRY(const Membership outside, read());
  FERRY_TRY(Inside* const thread, context.host.inside_of(task.pid));
  FERRY_TRY(const Membership inside, thread->get<Membership>(read));
  std::map<std::string, std::string> out;
  for (const auto& [name, path] : outside) {
    const auto seen = inside.find(name);
    if (seen == inside.end() || (seen->second != "/" && !path.ends_with(seen->second))) {
      return fail(Kind::unsupported, "{} stands outside of its cgroup namespace in hierarchy \"{}\"", task.subject(),
                  name);
    }
    out[name] = path.substr(0, path.size() - (seen->second == "/" ? 0 : seen->second.size()));
  }
  return out;
}

// One place in every hierarchy, and how many bytes of each path lie outside of the cgroup namespace.
struct Set {
  Membership membership;
  std::map<std::string, std::uint32_t> prefixes;
  bool operator==(const Set&) const = default;
};

class Sets {
 public:
  explicit Sets(Membership own) { sets_.push_back({std::move(own), {}}); }
  std::uint32_t number_of(Set set) {
    for (std::size_t i = 0; i < sets_.size(); ++i) {
      if (sets_[i] == set) {
        return static_cast<std::uint32_t>(i) + kOwnSet;
      }
    }
    sets_.push_back(std::move(set));
    return static_cast<std::uint32_t>(sets_.size() - 1) + kOwnSet;
  }
  [[nodiscard]] const std::vector<Set>& all() const { return sets_; }

 private:
  std::vector<Set> sets_;
};

// Prefixes by cgroup namespace of the set.
class Prefixes {
 public:
  static Result<Prefixes> of(DumpContext& context) {
    Prefixes out;
    for (const TreeNamespace& ns : tree_namespaces(context, NsKind::cgroup)) {
      FERRY_TRY(out.roots_[ns.id], namespace_roots(context, ns));
    }
    return out;
  }
  Result<std::map<std::string, std::uint32_t>> of(const DumpTask& task, const Membership& membership) const {
    std::map<std::string, std::uint32_t> out;
    const auto roots = roots_.find(namespace_of(*task.ids, NsKind::cgroup));
    if (roots == roots_.end()) {
      return out;
    }
    for (const auto& [name, path] : membership) {
      const std::string& root = roots->second.at(name);
      const bool below = root.empty() || root == "/" || path == root || path.starts_with(root + "/");
      if (!below) {
        return fail(Kind::unsupported, "{} stands outside of its cgroup namespace in hierarchy \"{}\"", task.subject(),
                    name);
      }
      if (!root.empty() && root != "/") {
        out[name] = static_cast<std::uint32_t>(root.size());
      }
    }
    return out;
  }

 private:
  std::map<std::uint32_t, std::map<std::string, std::string>> roots_;
};

// --cgroup-dump-controller: of the other hierarchies only the groups are kept.
bool chosen(const DumpOptions& options, const std::string& hierarchy) {
  const auto& list = options.cgroup_controllers;
  return list.empty() ||
         std::any_of(list.begin(), list.end(), [&](const std::string& c) { return names_controller(hierarchy, c); });
}

// Nothing runs in the group nor below it.  One that cannot be looked at is somebody else's.
bool is_idle(const Hierarchy& hierarchy, const std::string& path) {
  const auto threads = hierarchy.thread_list(path);
  const auto children = hierarchy.children(path);
  return threads.has_value() && threads->empty() && children.has_value() &&
         std::all_of(children->begin(), children->end(), [&](const std::string& c) { return is_idle(hierarchy, c); });
}

// Groups beside those of the tree's tasks that are its own all the same: a service manager has some for
// services that are between two runs, and watches them.
Result<void> add_idle(const Hierarchy& hierarchy, const std::string& top, std::set<std::string>& paths) {
  FERRY_TRY(const auto children, hierarchy.children(top));
  for (const std::string& child : children) {
    if (paths.contains(child)) {
      continue;  // is described with all that is below it
    }
    const auto below = paths.lower_bound(child + "/");
    if (below != paths.end() && below->starts_with(child + "/")) {
      FERRY_CHECK(add_idle(hierarchy, child, paths));
    } else if (is_idle(hierarchy, child)) {
      paths.insert(child);
    }
  }
  return {};
}

// The group below which all groups are the tree's: the root of its cgroup namespace, or what all its tasks
// stand below if they stand at several places.  Empty if there is none.
std::string top_of(const Sets& sets, const std::string& hierarchy) {
  const std::string* first = nullptr;
  std::string common;
  bool several = false;
  for (std::size_t i = 1; i < sets.all().size(); ++i) {
    const Set& set = sets.all()[i];
    const auto path = set.membership.find(hierarchy);
    if (path == set.membership.end()) {
      continue;
    }
    if (const auto prefix = set.prefixes.find(hierarchy); prefix != set.prefixes.end()) {
      return path->second.substr(0, prefix->second);
    }
    if (first == nullptr) {
      first = &path->second;
      common = *first + "/";
      continue;
    }
    several = several || path->second != *first;
    const std::string other = path->second + "/";
    const auto differs = std::mismatch(common.begin(), common.end(), other.begin(), other.end()).first;
    common.erase(common.rfind('/', static_cast<std::size_t>(differs - common.begin())) + 1);
  }
  return several && common.size() > 1 ? common.substr(0, common.size() - 1) : "";
}

Result<void> describe_controllers(DumpContext& context, const Sets& sets, pb::CgroupEntry& out) {
  std::map<std::string, std::set<std::string>> paths;
  for (std::size_t i = 1; i < sets.all().size(); ++i) {
    for (const auto& [name, path] : sets.all()[i].membership) {
      paths[name].insert(path);
    }
  }
  for (auto& [name, list] : paths) {
    FERRY_TRY(const Hierarchy* hierarchy, context.host.hierarchy(name));
    if (const std::string top = top_of(sets, name); !top.empty() && !list.contains(top)) {
      FERRY_CHECK(add_idle(*hierarchy, top, list));
    }
    pb::CgControllerEntry& controller = *out.add_controllers();
    for (std::size_t at = 0; at <= name.size();) {
      const std::size_t end = std::min(name.find(',', at), name.size());
      controller.add_cnames(name.substr(at, end - at));
      at = end + 1;
    }
    controller.set_is_threaded(!name.empty());
    const std::string* last = nullptr;
    for (const std::string& path : list) {  // sorted: a directory stands before what is below it
      if (last != nullptr && path.starts_with(*last + "/")) {
        continue;
      }
      last = &path;
      pb::CgroupDirEntry& dir = *controller.add_dirs();
      dir.set_dir_name(path.substr(1));
      // The root group belongs to the host.
      if (path == "/" || !chosen(context.options, name)) {
        continue;
      }
      if (context.options.cgroup_by_runtime && context.options.freeze_cgroup.ends_with(path)) {
        FERRY_CHECK(hierarchy->read_below(path, context.options.cgroup_properties, dir));
      } else {
        FERRY_CHECK(hierarchy->read(path, true, context.options.cgroup_properties, dir));
      }
    }
  }
  return {};
}

}  // namespace

Result<void> collect(DumpContext& context) {
  if (pb::InventoryEntry* inventory = inventory_of(context.set)) {
    inventory->set_root_cg_set(kOwnSet);
  }
  FERRY_TRY(const std::string own, sys::read_file("/proc/self/cgroup"));
  FERRY_TRY(Membership here, parse_membership(own));
  Sets sets(std::move(here));
  FERRY_TRY(const Prefixes prefixes,
            context.options.cgroup_mode == CgroupMode::ignore ? Result<Prefixes>(Prefixes()) : Prefixes::of(context));
  Placement placement(context.host, context.tasks);
  for (const auto& task : context.tasks) {
    if (task->zombie) {
      continue;
    }
    // Most threads stand where the one before stood.
    const Membership* last = nullptr;
    std::uint32_t number = kOwnSet;
    for (DumpThread& thread : task->threads) {
      if (!task->asks(thread)) {
        thread.core->mutable_thread_core()->set_cg_set(task->model_of(thread).core->thread_core().cg_set());
        continue;
      }
      if (context.options.cgroup_mode != CgroupMode::ignore) {
        FERRY_TRY(const Membership* membership, placement.of(*task, thread).during("{}", task->subject()));
        if (membership != last) {
          FERRY_TRY(auto cut, prefixes.of(*task, *membership));
          number = sets.number_of({*membership, std::move(cut)});
          last = membership;
        }
      }
      thread.core->mutable_thread_core()->set_cg_set(number);
    }
  }
  if (sets.all().size() == 1) {
    return {};
  }
  pb::CgroupEntry entry;
  for (std::size_t i = 1; i < sets.all().size(); ++i) {
    pb::CgSetEntry& set = *entry.add_sets();
    set.set_id(static_cast<std::uint32_t>(i) + kOwnSet);
    const Set& one = sets.all()[i];
    for (const auto& [name, path] : one.membership) {
      pb::CgMemberEntry& member = *set.add_ctls();
      member.set_name(name);
      member.set_path(path);
      if (const auto prefix = one.prefixes.find(name); prefix != one.prefixes.end()) {
        member.set_cgns_prefix(prefix->second);
      }
    }
  }
  FERRY_CHECK(describe_controllers(context, sets, entry));
  context.set.add({image::Type::cgroup, 0}, std::move(entry));
  return {};
}

}  // namespace ferry::state::cgroup
