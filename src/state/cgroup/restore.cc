#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "image/proto/inventory.pb.h"
#include "state/cgroup/cgroup.h"
#include "state/cgroup/membership.h"
#include "state/cgroup/tree.h"
#include "state/leftovers.h"
#include "state/nested/nested.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state::cgroup {
namespace {

std::uint32_t set_of(const pb::CoreEntry& core) {
  if (core.thread_core().has_cg_set()) {
    return core.thread_core().cg_set();
  }
  return core.tc().cg_set();
}

class Mover {
 public:
  static Result<Mover> of(RestoreContext& context, const pb::CgroupEntry& image) {
    FERRY_TRY(const std::string own, sys::read_file("/proc/self/cgroup"));
    FERRY_TRY(Membership here, parse_membership(own));
    return Mover(context, image, std::move(here));
  }

  // Groups and their properties, as the mode wants them.
  Result<void> make_groups() {
    for (const pb::CgControllerEntry& controller : image_.controllers()) {
      std::string name;
      for (const std::string& word : controller.cnames()) {
        name += (name.empty() ? "" : ",") + word;
      }
      for (const pb::CgroupDirEntry& dir : controller.dirs()) {
        if (!dir.dir_name().empty()) {
          FERRY_CHECK(make_group(name, "/" + dir.dir_name(), dir));
        }
      }
    }
    return {};
  }

  // `thread`: only this one, not the whole process.  `inside_only`: up to the root of the cgroup namespace.
  Result<void> move(std::uint32_t number, pid_t pid, bool thread, bool to_namespace_root = false) {
    const pb::CgSetEntry* set = nullptr;
    for (const pb::CgSetEntry& candidate : image_.sets()) {
      set = candidate.id() == number ? &candidate : set;
    }
    if (set == nullptr) {
      return fail(Kind::corrupt, "cgroup.img has no set {}", number);
    }
    FERRY_TRY(const std::string text, sys::read_file(fmt::format("/proc/{}/cgroup", pid)));
    FERRY_TRY(const Membership now, parse_membership(text));
    for (const pb::CgMemberEntry& member : set->ctls()) {
      const bool cut = to_namespace_root && member.has_cgns_prefix();
      const std::string wanted =
          remap_.path(member.name(), cut ? member.path().substr(0, member.cgns_prefix()) : member.path());
      FERRY_TRY(const auto local, local_name(member.name(), wanted));
      if (!local.has_value() || now.at(*local) == wanted) {
        continue;
      }
      FERRY_TRY(const Hierarchy* hierarchy, hierarchy_of(*local));
      FERRY_CHECK(thread ? hierarchy->put_thread(wanted, pid) : hierarchy->put_process(wanted, pid));
    }
    return {};
  }

 private:
  Mover(RestoreContext& context, const pb::CgroupEntry& image, Membership here)
      : context_(context), image_(image), remap_(image, context.options.cgroup_roots), here_(std::move(here)) {}

  // The hierarchy of this host that has the controller of one of the image.
  Result<std::optional<std::string>> local_name(const std::string& name, const std::string& wanted) const {
    if (here_.contains(name)) {
      return std::optional(name);
    }
    const std::string first = name.substr(0, name.find(','));
    for (const auto& [local, path] : here_) {
      if (!name.empty() && names_controller(local, first)) {
        return std::optional(local);
      }
    }
    if (wanted == "/") {
      return std::optional<std::string>();  // the root group of a hierarchy that is not here limits nothing
    }
    return fail(Kind::unsupported,
                "the tree stood in cgroup {} of hierarchy \"{}\", which this host does not have (its cgroups are of "
                "another version or are not mounted); use --manage-cgroups=ignore",
                wanted, name);
  }

  Result<const Hierarchy*> hierarchy_of(const std::string& local) {
    const auto found = open_.find(local);
    if (found != open_.end()) {
      return &found->second;
    }
    const std::string& yard = context_.options.cgroup_yard;
    FERRY_TRY(Hierarchy hierarchy, yard.empty() ? Hierarchy::open(local) : Hierarchy::open_in(yard, local));
    return &open_.emplace(local, std::move(hierarchy)).first->second;
  }

  Result<void> make_group(const std::string& name, const std::string& old_path, const pb::CgroupDirEntry& dir) {
    const std::string path = remap_.path(name, old_path);
    FERRY_TRY(const auto local, local_name(name, path));
    if (!local.has_value()) {
      return {};
    }
    FERRY_TRY(const Hierarchy* hierarchy, hierarchy_of(*local));
    const bool exists = hierarchy->has(path);
    const CgroupMode mode = context_.options.cgroup_mode;
    if (!exists && (mode == CgroupMode::none || mode == CgroupMode::props)) {
      return fail(Kind::invalid, "cgroup {} of hierarchy \"{}\" does not exist, and the mode forbids to make it", path,
                  *local);
    }
    if (exists && mode == CgroupMode::strict) {
      return fail(Kind::invalid, "cgroup {} of hierarchy \"{}\" exists already, which mode strict forbids", path,
                  *local);
    }
    if (!exists) {
      FERRY_TRY(const auto made, hierarchy->make(path));
      for (const std::string& group : made) {
        // Not by the object: it is gone by then.
        FERRY_TRY(auto root, hierarchy->duplicate());
        context_.leftovers.add([group, held = std::make_shared<Hierarchy>(std::move(root))] { held->remove(group); });
      }
    }
    const bool properties = mode == CgroupMode::props || mode == CgroupMode::full || mode == CgroupMode::strict ||
                            (mode == CgroupMode::soft && !exists);
    if (properties) {
      FERRY_CHECK(hierarchy->set_properties(path, dir, !exists));
    }
    for (const pb::CgroupDirEntry& child : dir.children()) {
      FERRY_CHECK(make_group(name, old_path + "/" + child.dir_name(), child));
    }
    return {};
  }

  RestoreContext& context_;
  const pb::CgroupEntry& image_;
  Remap remap_;
  Membership here_;
  std::map<std::string, Hierarchy> open_;
};

// What there is to do: nothing in mode ignore, nor for a set whose tree stood where its dumper did.
const pb::CgroupEntry* image_of(const RestoreContext& context) {
  const auto list = context.set.list<pb::CgroupEntry>({image::Type::cgroup, 0});
  return list.empty() || context.options.cgroup_mode == CgroupMode::ignore ? nullptr : list.front();
}

std::uint32_t own_set(const image::Set& set) {
  const auto list = set.list<pb::InventoryEntry>({image::Type::inventory, 0});
  return list.empty() ? 0 : list.front()->root_cg_set();
}

}  // namespace

Result<void> restore_root(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  RestoreTask& root = context.root();
  const pb::CgroupEntry* image = image_of(context);
  const std::uint32_t number = set_of(*root.core);
  const bool elsewhere = image != nullptr && number != 0 && number != own_set(context.set);
  std::optional<Mover> mover;
  if (image != nullptr) {
    FERRY_TRY(Mover made, Mover::of(context, *image));
    mover.emplace(std::move(made));
    FERRY_CHECK(mover->make_groups());
  }
  if (elsewhere) {
    FERRY_CHECK(mover->move(number, root.pid.value, false, ids.is_new(NsKind::cgroup)));
  }
  if (!ids.is_new(NsKind::cgroup)) {
    return {};
  }
  // cgroup_namespaces(7): the root of the new namespace is where the task stands at this moment.
  tracee::Batch batch;
  batch.must("unshare(CLONE_NEWCGROUP)", SYS_unshare, {CLONE_NEWCGROUP});
  FERRY_CHECK(root.process.run(root.leader(), batch));
  return elsewhere ? mover->move(number, root.pid.value, false) : Result<void>();
}

namespace {

// cgroup_namespaces(7): the root of a new namespace is where the task stands at this moment.
// `mover`: nullptr if the task stays where it is.
Result<void> enter_namespace(RestoreContext& context, Mover* mover, RestoreTask& task, std::uint32_t number) {
  const std::uint32_t id = namespace_of(*task.ids, NsKind::cgroup);
  FERRY_TRY(const auto known, new_namespaces(context.set, NsKind::cgroup));
  if (id == namespace_of(*context.root().ids, NsKind::cgroup) ||
      std::find(known.begin(), known.end(), id) == known.end()) {
    return {};
  }
  tracee::Batch batch;
  if (const int held = context.nested.fd(NsKind::cgroup, id); held >= 0) {
    const tracee::Value ns = batch.must("pidfd_getfd(namespace)", SYS_pidfd_getfd, {task.controller_pidfd, held, 0});
    batch.must("setns(CLONE_NEWCGROUP)", SYS_setns, {ns, CLONE_NEWCGROUP});
    batch.must("close", SYS_close, {ns});
    FERRY_CHECK(task.process.run(task.leader(), batch));
    return {};
  }
  if (mover != nullptr) {
    FERRY_CHECK(mover->move(number, task.pid.value, false, true));
  }
  batch.must("unshare(CLONE_NEWCGROUP)", SYS_unshare, {CLONE_NEWCGROUP});
  FERRY_CHECK(task.process.run(task.leader(), batch));
  FERRY_TRY(UniqueFd ns, sys::open(fmt::format("/proc/{}/ns/cgroup", task.pid), O_RDONLY));
  context.nested.put(NsKind::cgroup, id, std::move(ns));
  return {};
}

}  // namespace

Result<void> restore(RestoreContext& context) {
  const pb::CgroupEntry* image = image_of(context);
  FERRY_TRY(const auto namespaces, new_namespaces(context.set, NsKind::cgroup));
  if (image == nullptr && namespaces.empty()) {
    return {};
  }
  std::optional<Mover> mover;
  if (image != nullptr) {
    FERRY_TRY(Mover made, Mover::of(context, *image));
    mover.emplace(std::move(made));
  }
  const std::uint32_t own = own_set(context.set);
  for (const auto& task : context.tasks) {
    if (task->mm == nullptr) {
      continue;  // a zombie's groups are not kept
    }
    const std::uint32_t number = set_of(*task->core);
    Mover* const moves = mover.has_value() && number != 0 && number != own ? &*mover : nullptr;
    if (!namespaces.empty()) {
      FERRY_CHECK(enter_namespace(context, moves, *task, number).during("cgroup namespace of pid {}", task->ns_pid()));
    }
    if (moves != nullptr) {
      FERRY_CHECK(moves->move(number, task->pid.value, false));
    }
  }
  return {};
}

Result<void> restore_threads(RestoreContext& context) {
  const pb::CgroupEntry* image = image_of(context);
  if (image == nullptr) {
    return {};
  }
  std::optional<Mover> mover;
  const std::uint32_t own = own_set(context.set);
  for (const auto& task : context.tasks) {
    const std::uint32_t number = task->mm == nullptr ? 0 : set_of(*task->core);
    for (const RestoreThread& thread : task->threads) {
      const std::uint32_t its = task->mm == nullptr ? 0 : set_of(*thread.core);
      if (its == 0 || its == own || its == number || thread.tid.value == 0) {
        continue;
      }
      if (!mover.has_value()) {
        FERRY_TRY(Mover made, Mover::of(context, *image));
        mover.emplace(std::move(made));
      }
      FERRY_CHECK(mover->move(its, thread.tid.value, true));
    }
  }
  return {};
}

}  // namespace ferry::state::cgroup
