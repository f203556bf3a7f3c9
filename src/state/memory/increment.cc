#include "state/memory/increment.h"

#include <fcntl.h>

#include "base/log.h"
#include "image/proto/inventory.pb.h"
#include "image/proto/mm.pb.h"
#include "state/memory/pages.h"
#include "sys/file.h"

namespace ferry::state::memory {

Result<ParentSet> ParentSet::open(int images_dir) {
  ParentSet out;
  FERRY_TRY(out.directory_, sys::open_at(images_dir, "parent", O_RDONLY | O_DIRECTORY));
  FERRY_TRY(auto set, image::load(out.directory_.get(), image::Accept::pre_dump));
  out.set_ = std::make_unique<image::Set>(std::move(set));
  FERRY_TRY(const auto* inventory, out.set_->one<pb::InventoryEntry>({image::Type::inventory}));
  out.id_ = inventory->ferry_id();
  FERRY_TRY(auto store, image::PageStore::open(*out.set_, out.directory_.get()));
  out.store_ = std::make_unique<image::PageStore>(std::move(store));
  return out;
}

std::vector<sys::PageRange> ParentSet::pages_of(NsPid pid) {
  const image::Name name{image::Type::pagemap, static_cast<std::uint64_t>(pid.value)};
  std::vector<sys::PageRange> out;
  if (!set_->has(name)) {
    return pages_sent_of(pid);
  }
  const auto extents = store_->extents(name);
  if (!extents.has_value()) {
    log::warning("all pages of process {} are saved: the parent set is damaged: {}", pid, extents.error().message());
    return out;
  }
  for (const image::Extent& e : *extents) {
    if (e.fd >= 0) {
      out.push_back({e.vaddr, e.vaddr + e.page_count * image::kPageSize});
    }
  }
  tidy(out);
  return out;
}

std::string sent_file_name(NsPid pid) { return fmt::format("ferry-sent-{}", pid); }

std::vector<sys::PageRange> ParentSet::pages_sent_of(NsPid pid) const {
  std::vector<sys::PageRange> out;
  auto bytes = sys::read_file_at(directory_.get(), sent_file_name(pid));
  if (!bytes.has_value()) {
    return out;
  }
  const image::Name name{image::Type::pagemap, static_cast<std::uint64_t>(pid.value)};
  image::Set sent;
  if (const auto decoded = image::decode_file(sent, name, std::move(*bytes), 2); !decoded.has_value()) {
    log::warning("all pages of process {} are saved: {}: {}", pid, sent_file_name(pid), decoded.error().message());
    return out;
  }
  for (const auto* entry : sent.list<pb::PagemapEntry>(name)) {
    if ((entry->flags() & (image::kPresent | image::kInParent)) != 0) {
      out.push_back({entry->vaddr(), entry->vaddr() + entry->nr_pages() * image::kPageSize});
    }
  }
  tidy(out);
  return out;
}

void Increment::track(Tracker tracker, std::vector<sys::PageRange> in_parent) {
  const HostPid pid = tracker.pid();
  tasks_.insert_or_assign(pid, Task{std::move(tracker), std::move(in_parent)});
}

void Increment::distrust(HostPid pid, const std::vector<sys::PageRange>& pages) {
  if (const auto task = tasks_.find(pid); task != tasks_.end()) {
    task->second.tracker.distrust(pages);
  }
}

Result<Increment::Parts> Increment::divide(HostPid pid, const std::vector<sys::Mapping>* mappings) {
  Task& task = tasks_.at(pid);
  FERRY_TRY(auto scan, mappings != nullptr ? task.tracker.scan(then_, *mappings) : task.tracker.scan(then_));
  Parts out;
  out.renewed = scan.renewed;
  out.guards = std::move(scan.guards);
  out.in_parent = common(scan.unchanged, task.in_parent);
  out.data = std::move(scan.written);
  const auto missing = without(scan.unchanged, out.in_parent);
  out.data.insert(out.data.end(), missing.begin(), missing.end());
  tidy(out.data);
  return out;
}

std::vector<const Tracker*> Increment::trackers() const {
  std::vector<const Tracker*> out;
  for (const auto& [pid, task] : tasks_) {
    out.push_back(&task.tracker);
  }
  return out;
}

}  // namespace ferry::state::memory
