#include "state/ipc/ipc.h"

#include <fcntl.h>
#include <sys/shm.h>

#include <cstring>
#include <map>
#include <set>

#include "image/page_store.h"
#include "state/dump_host.h"
#include "state/ipc/limits.h"
#include "state/ipc/sysv.h"
#include "state/memory/memory.h"
#include "state/nested/nested.h"
#include "state/nsids/nsids.h"
#include "sys/file.h"

namespace ferry::state::ipc {
namespace {

struct Found {
  pb::IpcVarEntry limits;
  std::vector<Segment> segments;
  std::vector<Semaphores> semaphores;
  std::vector<Queue> queues;
};

Result<UniqueFd> open_sysctl() { return sys::open("/proc/sys", O_PATH | O_DIRECTORY); }

Result<void> fill(const pb::IpcShmEntry& entry, const std::string& content, image::PageStore* pages) {
  const std::uint32_t id = entry.desc().id();
  FERRY_TRY(const Attached attached, Attached::segment(id, false));
  auto* const target = static_cast<char*>(attached.address());
  if (!entry.in_pagemaps()) {
    if (content.size() != entry.size()) {
      return fail(Kind::corrupt, "segment {} has {} bytes of content, not {}", id, content.size(), entry.size());
    }
    std::memcpy(target, content.data(), content.size());
    return {};
  }
  FERRY_TRY(const auto extents, pages->extents({image::Type::pagemap_shmem, id}));
  const std::uint64_t room = (entry.size() + image::kPageSize - 1) / image::kPageSize * image::kPageSize;
  for (const image::Extent& extent : extents) {
    const std::uint64_t bytes = extent.page_count * image::kPageSize;
    if (extent.vaddr > room || bytes > room - extent.vaddr || extent.fd < 0) {
      return fail(Kind::corrupt, "pagemap-shmem-{} does not fit a segment of {} bytes", id, entry.size());
    }
    FERRY_CHECK(sys::pread_exactly(extent.fd, target + extent.vaddr, bytes, extent.offset,
                                   fmt::format("pages of segment {}", id)));
  }
  return {};
}

std::vector<Queue> queues_of(const std::vector<image::Entry>& entries) {
  std::vector<Queue> out;
  for (const image::Entry& entry : entries) {
    if (const auto* queue = dynamic_cast<const pb::IpcMsgEntry*>(entry.message.get())) {
      out.push_back({*queue, {}});
    } else if (const auto* head = dynamic_cast<const pb::IpcMsg*>(entry.message.get());
               head != nullptr && !out.empty()) {
      out.back().messages.push_back({*head, entry.extra});
    }
  }
  return out;
}

bool has_objects(const image::Set& set, std::uint32_t id) {
  return set.has({image::Type::ipcns_shm, id}) || set.has({image::Type::ipcns_sem, id}) ||
         set.has({image::Type::ipcns_msg, id});
}

bool same_limits(const image::Set& one, std::uint32_t id, const image::Set& other, std::uint32_t other_id) {
  const auto mine = one.list<pb::IpcVarEntry>({image::Type::ipcns_var, id});
  const auto theirs = other.list<pb::IpcVarEntry>({image::Type::ipcns_var, other_id});
  return mine.size() == 1 && theirs.size() == 1 &&
         mine.front()->SerializeAsString() == theirs.front()->SerializeAsString();
}

// The number of a namespace in an earlier set of the same tree; 0: it was not there.
std::uint32_t earlier_id(const image::Set& before, const image::Set& now, std::uint32_t id) {
  const std::uint64_t inode = inode_of(now, id);
  for (const image::Name& name : before.names(image::Type::ipcns_var)) {
    const auto earlier = static_cast<std::uint32_t>(name.id);
    if (inode != 0 && inode_of(before, earlier) == inode) {
      return earlier;
    }
  }
  return 0;
}

// Everything of an empty namespace, by a thread that has joined it.
Result<void> build(RestoreContext& context, Inside& inside, std::uint32_t id) {
  FERRY_TRY(const auto* limits, context.set.one<pb::IpcVarEntry>({image::Type::ipcns_var, id}));
  FERRY_TRY(const UniqueFd sysctl, open_sysctl());
  const auto& segments = context.set.entries({image::Type::ipcns_shm, id});
  std::optional<image::PageStore> pages;
  for (const image::Entry& segment : segments) {
    if (!pages.has_value() && static_cast<const pb::IpcShmEntry&>(*segment.message).in_pagemaps()) {
      FERRY_TRY(image::PageStore store, image::PageStore::open(context.set, context.options.images_dir));
      pages.emplace(std::move(store));
    }
  }
  return inside.run([&]() -> Result<void> {
    FERRY_CHECK(write_limits(sysctl.get(), *limits));
    for (const image::Entry& segment : segments) {
      const auto& entry = static_cast<const pb::IpcShmEntry&>(*segment.message);
      FERRY_CHECK(make_segment(sysctl.get(), entry));
      FERRY_CHECK(fill(entry, segment.extra, pages.has_value() ? &*pages : nullptr));
    }
    for (const image::Entry& entry : context.set.entries({image::Type::ipcns_sem, id})) {
      FERRY_CHECK(make_semaphores(sysctl.get(), {static_cast<const pb::IpcSemEntry&>(*entry.message), entry.extra}));
    }
    for (const Queue& queue : queues_of(context.set.entries({image::Type::ipcns_msg, id}))) {
      FERRY_CHECK(make_queue(sysctl.get(), queue));
    }
    return {};
  });
}

// A process keeps what it has attached when it gets another namespace (ipc_namespaces(7)), or has it from its parent.
// The kernel's file of a segment tells its number but not its namespace, so what is told apart here is counted.
Result<void> check_attachments(const DumpContext& context, const TreeNamespace& ns, const std::vector<Segment>& all) {
  std::map<std::uint64_t, std::uint64_t> left;
  for (const Segment& segment : all) {
    left.emplace(segment.entry.desc().id(), segment.attached);
  }
  std::set<std::uint32_t> address_spaces;
  for (const auto& task : context.tasks) {
    if (task->zombie || task->mm == nullptr || namespace_of(*task->ids, NsKind::ipc) != ns.id ||
        !address_spaces.insert(task->ids->vm_id()).second) {
      continue;
    }
    for (const pb::VmaEntry& vma : task->mm->vmas()) {
      if ((vma.status() & memory::kSysvIpc) == 0) {
        continue;
      }
      const auto of_segment = left.find(vma.shmid());
      if (of_segment == left.end() || of_segment->second == 0) {
        return fail(Kind::unsupported,
                    "{} has a System V segment attached (at {:x}) that is not of the ipc namespace which it is in",
                    task->subject(), vma.start());
      }
      --of_segment->second;
    }
  }
  return {};
}

Result<void> collect_one(DumpContext& context, const TreeNamespace& ns, bool of_root) {
  FERRY_TRY(const UniqueFd sysctl, open_sysctl());
  FERRY_TRY(Inside* const inside, context.host.inside_of(ns.task->pid));
  Found found;
  const auto look = [&]() -> Result<void> {
    FERRY_TRY(found.limits, read_limits(sysctl.get()));
    FERRY_TRY(found.segments, read_segments());
    FERRY_TRY(found.semaphores, read_semaphores());
    FERRY_TRY(found.queues, read_queues());
    return {};
  };
  FERRY_CHECK(inside->run(look));
  FERRY_CHECK(check_attachments(context, ns, found.segments));
  if (of_root) {
    FERRY_CHECK(context.host.queues().collect(context, found.limits));
  } else {
    FERRY_CHECK(context.host.queues().check_other(*inside));
  }
  FERRY_CHECK(context.host.undos().collect(context, ns.id, *inside, found.semaphores));
  image::Set& set = context.set;
  set.add({image::Type::ipcns_var, ns.id}, std::move(found.limits));
  for (Segment& segment : found.segments) {
    set.add({image::Type::ipcns_shm, ns.id}, std::move(segment.entry), std::move(segment.content));
  }
  for (Queue& queue : found.queues) {
    set.add({image::Type::ipcns_msg, ns.id}, std::move(queue.entry));
    for (Queue::Message& message : queue.messages) {
      set.add({image::Type::ipcns_msg, ns.id}, std::move(message.head), std::move(message.text));
    }
  }
  for (Semaphores& semaphores : found.semaphores) {
    set.add({image::Type::ipcns_sem, ns.id}, std::move(semaphores.entry), std::move(semaphores.values));
  }
  return {};
}

}  // namespace

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  for (const TreeNamespace& ns : tree_namespaces(context, NsKind::ipc)) {
    FERRY_CHECK(
        collect_one(context, ns, ns.id == ids.id(NsKind::ipc)).during("ipc namespace of {}", ns.task->subject()));
  }
  return {};
}

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::ipc));
  if (!ids.empty()) {
    FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
  }
  for (const std::uint32_t id : ids) {
    FERRY_TRY(Inside* const inside, context.nested.inside(context, NsKind::ipc, id));
    FERRY_CHECK(build(context, *inside, id).during("ipc namespace"));
  }
  return {};
}

Result<void> renew(RestoreContext& context, const image::Set& before) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::ipc));
  for (const std::uint32_t id : ids) {
    const std::uint32_t earlier = earlier_id(before, context.set, id);
    if (!has_objects(context.set, id) && !has_objects(before, earlier) &&
        same_limits(context.set, id, before, earlier)) {
      continue;
    }
    FERRY_TRY(Inside* const inside, context.nested.inside(context, NsKind::ipc, id));
    FERRY_CHECK(inside->run(remove_all).during("ipc namespace"));
    FERRY_CHECK(build(context, *inside, id).during("ipc namespace"));
  }
  return {};
}

Result<void> finish(RestoreContext& context) {
  FERRY_TRY(const auto ids, new_namespaces(context.set, NsKind::ipc));
  for (const std::uint32_t id : ids) {
    const auto segments = context.set.list<pb::IpcShmEntry>({image::Type::ipcns_shm, id});
    const auto remove = [&]() -> Result<void> {
      for (const pb::IpcShmEntry* segment : segments) {
        if ((segment->desc().mode() & SHM_DEST) != 0) {
          FERRY_CHECK(remove_segment(segment->desc().id()));
        }
      }
      return {};
    };
    if (!segments.empty()) {
      FERRY_TRY(Inside* const inside, context.nested.inside(context, NsKind::ipc, id));
      FERRY_CHECK(inside->run(remove).during("ipc namespace"));
    }
  }
  return {};
}

}  // namespace ferry::state::ipc
