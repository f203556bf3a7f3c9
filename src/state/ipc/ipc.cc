#include "state/ipc/ipc.h"

#include <fcntl.h>
#include <sys/shm.h>

#include <cstring>

#include "image/page_store.h"
#include "state/dump_host.h"
#include "state/ipc/limits.h"
#include "state/ipc/sysv.h"
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

bool same_limits(const image::Set& one, const image::Set& other, std::uint32_t id) {
  const auto mine = one.list<pb::IpcVarEntry>({image::Type::ipcns_var, id});
  const auto theirs = other.list<pb::IpcVarEntry>({image::Type::ipcns_var, id});
  return mine.size() == 1 && theirs.size() == 1 &&
         mine.front()->SerializeAsString() == theirs.front()->SerializeAsString();
}

// Everything of an empty namespace, by a thread that has joined it.
Result<void> build(RestoreContext& context, std::uint32_t id) {
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
  return context.inside.run([&]() -> Result<void> {
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

}  // namespace

Result<void> collect(DumpContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::ipc)) {
    return {};
  }
  FERRY_TRY(const UniqueFd sysctl, open_sysctl());
  Found found;
  const auto look = [&]() -> Result<void> {
    FERRY_TRY(found.limits, read_limits(sysctl.get()));
    FERRY_TRY(found.segments, read_segments());
    FERRY_TRY(found.semaphores, read_semaphores());
    FERRY_TRY(found.queues, read_queues());
    return {};
  };
  FERRY_CHECK(context.host.inside().run(look).during("ipc namespace of {}", context.root().subject()));

  FERRY_CHECK(context.host.queues().collect(context, found.limits));
  FERRY_CHECK(context.host.undos().collect(context, found.semaphores));
  image::Set& set = context.set;
  const std::uint64_t id = ids.id(NsKind::ipc);
  set.add({image::Type::ipcns_var, id}, std::move(found.limits));
  for (Segment& segment : found.segments) {
    set.add({image::Type::ipcns_shm, id}, std::move(segment.entry), std::move(segment.content));
  }
  for (Queue& queue : found.queues) {
    set.add({image::Type::ipcns_msg, id}, std::move(queue.entry));
    for (Queue::Message& message : queue.messages) {
      set.add({image::Type::ipcns_msg, id}, std::move(message.head), std::move(message.text));
    }
  }
  for (Semaphores& semaphores : found.semaphores) {
    set.add({image::Type::ipcns_sem, id}, std::move(semaphores.entry), std::move(semaphores.values));
  }
  return {};
}

Result<void> restore(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::ipc)) {
    return {};
  }
  FERRY_CHECK(context.inside.enter_namespaces(context.root().pid));
  return build(context, ids.id(NsKind::ipc)).during("ipc namespace");
}

Result<void> renew(RestoreContext& context, const image::Set& before) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  const std::uint32_t id = ids.id(NsKind::ipc);
  if (!ids.is_new(NsKind::ipc) ||
      (!has_objects(context.set, id) && !has_objects(before, id) && same_limits(context.set, before, id))) {
    return {};
  }
  FERRY_CHECK(context.inside.run(remove_all).during("ipc namespace"));
  return build(context, id).during("ipc namespace");
}

Result<void> finish(RestoreContext& context) {
  FERRY_TRY(const NamespaceIds ids, NamespaceIds::of(context.set));
  if (!ids.is_new(NsKind::ipc)) {
    return {};
  }
  const auto segments = context.set.list<pb::IpcShmEntry>({image::Type::ipcns_shm, ids.id(NsKind::ipc)});
  const auto remove = [&]() -> Result<void> {
    for (const pb::IpcShmEntry* segment : segments) {
      if ((segment->desc().mode() & SHM_DEST) != 0) {
        FERRY_CHECK(remove_segment(segment->desc().id()));
      }
    }
    return {};
  };
  return context.inside.run(remove).during("ipc namespace");
}

}  // namespace ferry::state::ipc
