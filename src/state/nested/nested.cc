#include "state/nested/nested.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "image/proto/mount.pb.h"
#include "image/proto/net.pb.h"
#include "sys/file.h"

namespace ferry::state {
namespace {

constexpr NsKind kMadeHere[] = {NsKind::net, NsKind::uts, NsKind::ipc};
constexpr NsKind kEntered[] = {NsKind::net, NsKind::uts, NsKind::ipc, NsKind::mnt};

int clone_flag(NsKind kind) { return static_cast<int>(ns_clone_flag(kind)); }

std::string path_of(HostPid pid, NsKind kind) { return fmt::format("/proc/{}/ns/{}", pid, ns_name(kind)); }

// A network namespace that the caller keeps and hands in again.
Result<UniqueFd> external_network(const RestoreContext& context, NsKind kind, std::uint32_t id) {
  const auto list = context.set.list<pb::NetnsEntry>({image::Type::netns, id});
  if (kind != NsKind::net || list.empty() || !list.front()->has_ext_key()) {
    return UniqueFd();
  }
  for (const InheritFd& inherit : context.options.inherit_fds) {
    if (inherit.key == list.front()->ext_key()) {
      return sys::duplicate(inherit.fd);
    }
  }
  return fail(Kind::invalid, "network namespace {} is external under the key {}, for which no descriptor was given", id,
              list.front()->ext_key());
}

}  // namespace

int Nested::fd(NsKind kind, std::uint32_t id) const {
  const auto found = held_.find({kind, id});
  return found == held_.end() ? -1 : found->second.get();
}

Result<void> Nested::make_one(RestoreContext& context, NsKind kind, std::uint32_t id) {
  RestoreTask& root = context.root();
  tracee::Batch leave;
  const tracee::Value home =
      leave.must("open(own namespace)", SYS_openat, {AT_FDCWD, leave.string(path_of(root.pid, kind)), O_RDONLY, 0});
  leave.must("unshare", SYS_unshare, {clone_flag(kind)});
  FERRY_TRY(const tracee::Replies replies, root.process.run(root.leader(), leave).during("namespace {}", id));
  const auto remote = static_cast<int>(replies[home]);
  FERRY_TRY(UniqueFd made, sys::open(path_of(root.pid, kind), O_RDONLY));
  tracee::Batch back;
  back.must("setns(own namespace)", SYS_setns, {remote, clone_flag(kind)});
  back.must("close", SYS_close, {remote});
  FERRY_CHECK(root.process.run(root.leader(), back).during("namespace {}", id));
  put(kind, id, std::move(made));
  return {};
}

Result<void> Nested::check_single_network(const image::Set& set) {
  FERRY_TRY(const auto ids, new_namespaces(set, NsKind::net));
  if (ids.size() > 1) {
    return fail(Kind::unsupported,
                "the tree has several network namespaces, so it cannot be restored ahead of time; checkpoint and "
                "restore it instead");
  }
  return {};
}

std::vector<HeldNamespace> Nested::give(const image::Set& set) {
  std::vector<HeldNamespace> out;
  for (auto& [which, fd] : held_) {
    if (which.first != NsKind::net) {
      out.push_back({which.first, inode_of(set, which.second), std::move(fd)});
    }
  }
  insides_.clear();
  held_.clear();
  return out;
}

Result<void> Nested::take(RestoreContext& context, const std::vector<HeldNamespace>& made) {
  FERRY_CHECK(check_single_network(context.set));
  for (const NsKind kind : {NsKind::uts, NsKind::ipc, NsKind::mnt}) {
    FERRY_TRY(const auto ids, new_namespaces(context.set, kind));
    for (const std::uint32_t id : ids) {
      if (id == namespace_of(*context.root().ids, kind)) {
        continue;
      }
      const std::uint64_t inode = inode_of(context.set, id);
      const auto found = std::find_if(made.begin(), made.end(), [&](const HeldNamespace& one) {
        return one.kind == kind && one.inode == inode && inode != 0;
      });
      if (found == made.end()) {
        return fail(Kind::unsupported,
                    "a process of the container got a {} namespace of its own while it was being moved; move it again",
                    ns_name(kind));
      }
      FERRY_TRY(UniqueFd fd, sys::duplicate(found->fd.get()));
      put(kind, id, std::move(fd));
    }
  }
  return {};
}

Result<void> Nested::make(RestoreContext& context) {
  FERRY_CHECK(hold_own_network(context));
  for (const NsKind kind : kMadeHere) {
    FERRY_TRY(const auto ids, new_namespaces(context.set, kind));
    for (const std::uint32_t id : ids) {
      if (id == namespace_of(*context.root().ids, kind)) {
        continue;
      }
      FERRY_TRY(UniqueFd external, external_network(context, kind, id));
      if (external) {
        put(kind, id, std::move(external));
      } else {
        FERRY_CHECK(make_one(context, kind, id));
      }
    }
  }
  return {};
}

Result<Inside*> Nested::inside(RestoreContext& context, NsKind kind, std::uint32_t id) {
  const int ns = fd(kind, id);
  if (ns < 0) {
    return &context.inside;
  }
  std::unique_ptr<Inside>& inside = insides_[{kind, id}];
  if (inside == nullptr) {
    auto fresh = std::make_unique<Inside>();
    FERRY_CHECK(fresh->enter_namespaces(context.root().pid));
    FERRY_CHECK(fresh->join({{ns, clone_flag(kind)}}));
    inside = std::move(fresh);
  }
  return inside.get();
}

Result<Inside*> Nested::inside_network(RestoreContext& context, std::uint32_t id) {
  if (id != 0 && id != namespace_of(*context.root().ids, NsKind::net) && fd(NsKind::net, id) < 0) {
    return fail(
        Kind::unsupported,
        "a socket of the set is in network namespace {}, which no task of the set lives in and no image describes", id);
  }
  return inside(context, NsKind::net, id);
}

Result<UniqueFd> Nested::network(RestoreContext& context, std::uint32_t id) const {
  const int held = fd(NsKind::net, id);
  return held >= 0 ? sys::duplicate(held) : sys::open(fmt::format("/proc/{}/ns/net", context.root().pid), O_RDONLY);
}

Result<void> Nested::hold_own_network(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::net)) {
    return {};
  }
  FERRY_TRY(UniqueFd own, sys::open("/proc/self/ns/net", O_RDONLY));
  put(NsKind::net, ids.dumper[static_cast<std::size_t>(NsKind::net)], std::move(own));
  return {};
}

Result<Inside*> Nested::inside_of_mount(RestoreContext& context, std::int64_t mount_id) {
  if (!mounts_known_) {
    for (const image::Name& name : context.set.names(image::Type::mountpoints)) {
      for (const auto* entry : context.set.list<pb::MntEntry>(name)) {
        if (fd(NsKind::mnt, static_cast<std::uint32_t>(name.id)) >= 0) {
          mounts_.emplace(entry->mnt_id(), static_cast<std::uint32_t>(name.id));
        }
      }
    }
    mounts_known_ = true;
  }
  const auto found = mounts_.find(mount_id);
  return inside(context, NsKind::mnt, found == mounts_.end() ? 0 : found->second);
}

Result<void> Nested::enter(RestoreContext& context) {
  if (held_.empty()) {
    return {};
  }
  for (const auto& task : context.tasks) {
    if (task->mm == nullptr || task->ids == nullptr) {
      continue;
    }
    tracee::Batch batch;
    bool any = false;
    for (const NsKind kind : kEntered) {
      const int ours = fd(kind, namespace_of(*task->ids, kind));
      if (ours < 0) {
        continue;
      }
      const tracee::Value theirs =
          batch.must("pidfd_getfd(namespace)", SYS_pidfd_getfd, {task->controller_pidfd, ours, 0});
      batch.must("setns", SYS_setns, {theirs, clone_flag(kind)});
      batch.must("close", SYS_close, {theirs});
      any = true;
    }
    if (any) {
      FERRY_CHECK(task->process.run(task->leader(), batch).during("namespaces of pid {}", task->ns_pid()));
    }
  }
  return {};
}

}  // namespace ferry::state
