#include "state/cgroup/cgroup.h"

#include <optional>
#include <set>

#include "image/proto/inventory.pb.h"
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

// How many bytes of each path lie outside of the cgroup namespace of the tree: cgroup_namespaces(7) shows
// the rest to those inside.
Result<std::map<std::string, std::uint32_t>> namespace_prefixes(DumpContext& context, const Membership& outside) {
  const DumpTask& task = context.root();
  const auto read_inside = [&]() -> Result<Membership> {
    FERRY_TRY(const std::string text, sys::read_file_at(task.proc.get(), "cgroup"));
    return parse_membership(text);
  };
  FERRY_TRY(const Membership inside, context.host.inside().get<Membership>(read_inside));
  std::map<std::string, std::uint32_t> out;
  for (const auto& [name, path] : outside) {
    const auto seen = inside.find(name);
    if (seen == inside.end() || (seen->second != "/" && !path.ends_with(seen->second))) {
      return fail(Kind::unsupported, "{} stands outside of its cgroup namespace in hierarchy \"{}\"", task.subject(),
                  name);
    }
    const std::size_t visible = seen->second == "/" ? 0 : seen->second.size();
    out[name] = path == "/" ? 0 : static_cast<std::uint32_t>(path.size() - visible);
  }
  return out;
}

class Sets {
 public:
  explicit Sets(Membership own) { sets_.push_back(std::move(own)); }
  std::uint32_t number_of(const Membership& membership) {
    for (std::size_t i = 0; i < sets_.size(); ++i) {
      if (sets_[i] == membership) {
        return static_cast<std::uint32_t>(i) + kOwnSet;
      }
    }
    sets_.push_back(membership);
    return static_cast<std::uint32_t>(sets_.size() - 1) + kOwnSet;
  }
  [[nodiscard]] const std::vector<Membership>& all() const { return sets_; }

 private:
  std::vector<Membership> sets_;
};

Result<void> describe_controllers(DumpContext& context, const Sets& sets, pb::CgroupEntry& out) {
  std::map<std::string, std::set<std::string>> paths;
  for (std::size_t i = 1; i < sets.all().size(); ++i) {
    for (const auto& [name, path] : sets.all()[i]) {
      paths[name].insert(path);
    }
  }
  for (const auto& [name, list] : paths) {
    FERRY_TRY(const Hierarchy* hierarchy, context.host.hierarchy(name));
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
      if (path != "/") {  // the root group belongs to the host
        FERRY_CHECK(hierarchy->read(path, true, dir));
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
  std::optional<Membership> of_root;
  Placement placement(context.host, context.tasks);
  for (const auto& task : context.tasks) {
    if (task->zombie) {
      continue;
    }
    for (DumpThread& thread : task->threads) {
      std::uint32_t number = kOwnSet;
      if (context.options.cgroup_mode != CgroupMode::ignore) {
        FERRY_TRY(const Membership* membership, placement.of(*task, thread).during("{}", task->subject()));
        if (!of_root.has_value()) {
          of_root = *membership;
        }
        number = sets.number_of(*membership);
      }
      thread.core->mutable_thread_core()->set_cg_set(number);
    }
  }
  if (sets.all().size() == 1) {
    return {};
  }
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  std::map<std::string, std::uint32_t> prefixes;
  if (ids.is_new(NsKind::cgroup)) {
    FERRY_TRY(prefixes, namespace_prefixes(context, *of_root));
  }
  pb::CgroupEntry entry;
  for (std::size_t i = 1; i < sets.all().size(); ++i) {
    pb::CgSetEntry& set = *entry.add_sets();
    set.set_id(static_cast<std::uint32_t>(i) + kOwnSet);
    for (const auto& [name, path] : sets.all()[i]) {
      pb::CgMemberEntry& member = *set.add_ctls();
      member.set_name(name);
      member.set_path(path);
      if (const auto prefix = prefixes.find(name); prefix != prefixes.end() && prefix->second != 0) {
        member.set_cgns_prefix(prefix->second);
      }
    }
  }
  FERRY_CHECK(describe_controllers(context, sets, entry));
  context.set.add({image::Type::cgroup, 0}, std::move(entry));
  return {};
}

}  // namespace ferry::state::cgroup
