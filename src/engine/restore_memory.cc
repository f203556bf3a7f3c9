// The memory of a tree that is restored: sent ahead, read from a set, or to come later (restore_story.h).
#include "engine/restore_story.h"
#include "lazy/hand_over.h"
#include "state/aio/aio.h"
#include "state/io_uring/io_uring.h"
#include "state/memory/lazy.h"
#include "state/memory/pages.h"
#include "state/numa/numa.h"

namespace ferry::engine {
namespace {

using state::RestoreTask;

// The pages that a set says belong to a task: those that have to be there, or those that come later.
enum class When : std::uint8_t { now, later };
std::vector<sys::PageRange> pages_of(const image::Set& set, const RestoreTask& task, When when) {
  std::vector<sys::PageRange> out;
  const image::Name name{image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid().value)};
  for (const pb::PagemapEntry* entry : set.list<pb::PagemapEntry>(name)) {
    const bool later = (entry->flags() & (image::kLazy | image::kPresent)) == image::kLazy;
    if (later == (when == When::later)) {
      out.push_back({entry->vaddr(), entry->vaddr() + entry->nr_pages() * image::kPageSize});
    }
  }
  return out;
}

}  // namespace

state::memory::Staged* RestoreStory::staged_for(const RestoreTask& task) {
  const auto ahead = ahead_.find(task.ns_pid());
  return ahead == ahead_.end() ? nullptr : &ahead->second.memory;
}

Result<void> RestoreStory::build_memory() {
  const auto map = [&](RestoreTask& task, tracee::Batch& batch) -> Result<void> {
    auto& kernel = kernel_.emplace(&task, layout_.kernel).first->second;
    FERRY_TRY(kernel.foreign,
              state::memory::has_foreign_vdso(task, pages_.get()).during("the vDSO of pid {}", task.ns_pid()));
    state::memory::InPlace in_place;
    if (state::memory::Staged* const staged = staged_for(task); staged != nullptr) {
      FERRY_CHECK(
          staged->settle(task, *task.mm, pages_of(set_, task, When::now), batch).during("memory that was sent ahead"));
      in_place = [staged](const pb::VmaEntry& vma) { return staged->in_place(vma); };
    } else if (inheritance_) {
      inheritance_->settle(task, batch);
      in_place = [this, &task](const pb::VmaEntry& vma) { return inheritance_->in_place(task, vma); };
    }
    FERRY_CHECK(state::memory::add_mappings(task, context_, kernel, layout_.park, batch, in_place));
    return state::numa::restore(task, batch);
  };
  FERRY_CHECK(side_by_side("mappings", map));
  for (auto& task : tasks_) {
    if (task->mm != nullptr) {
      FERRY_CHECK(state::aio::restore(*task).during("restoring pid {}", task->ns_pid()));
      FERRY_CHECK(state::io_uring::restore_mappings(*task, context_).during("restoring pid {}", task->ns_pid()));
      FERRY_TRY(const std::uint64_t filled, fill(*task).during("restoring pid {}", task->ns_pid()));
      pages_restored_ += filled;
    } else if (daemon_) {
      FERRY_CHECK(lazy::send_idle_process(daemon_.get(), task->ns_pid()));
    }
  }
  inheritance_.reset();
  return {};
}

Result<std::uint64_t> RestoreStory::fill(RestoreTask& task) {
  if (const state::memory::Staged* const staged = staged_for(task); staged != nullptr) {
    FERRY_TRY(const std::uint64_t filled, state::memory::fill(task, staged->to_write(), kernel_.at(&task)));
    FERRY_CHECK(await_late(task));
    return filled;
  }
  if (inheritance_) {
    FERRY_TRY(const auto extents, inheritance_->to_write(task));
    return state::memory::fill(task, extents, kernel_.at(&task));
  }
  return daemon_ ? fill_lazily(task) : state::memory::fill(task, *pages_, kernel_.at(&task));
}

// From here on whoever looks at that memory, we included, waits for those who bring it.
Result<void> RestoreStory::await_late(RestoreTask& task) {
  const auto later = pages_of(set_, task, When::later);
  if (later.empty()) {
    return {};
  }
  if (late_ == nullptr) {
    return fail(Kind::corrupt, "pages of pid {} are to come later, and nobody brings them", task.ns_pid());
  }
  std::vector<sys::PageRange> elsewhere = state::memory::without(later, state::memory::lazy_ranges(*task.mm));
  if (!elsewhere.empty()) {
    return fail(Kind::corrupt, "page {:#x} of pid {} is to come later, and is in no memory that can wait for it",
                elsewhere.front().start, task.ns_pid());
  }
  std::vector<image::Extent> extents;
  for (const sys::PageRange& range : later) {
    extents.push_back({range.start, range.pages(), -1, 0});
  }
  FERRY_TRY(UniqueFd uffd, state::memory::make_userfaultfd(task));
  FERRY_CHECK(state::memory::make_missing(task, later));
  FERRY_CHECK(state::memory::await_pages(uffd.get(), *task.mm, extents));
  FERRY_CHECK(state::memory::allow_huge_pages(task));
  return late_->await(task.ns_pid(), std::move(uffd), later);
}

// From here on whoever looks at that memory, we included, is served by the daemon.
Result<std::uint64_t> RestoreStory::fill_lazily(RestoreTask& task) {
  const image::Name name{image::Type::pagemap, static_cast<std::uint64_t>(task.ns_pid().value)};
  FERRY_TRY(const auto extents, pages_->extents(name));
  const auto division = state::memory::divide(*task.mm, extents);
  FERRY_TRY(const std::uint64_t filled, state::memory::fill(task, division.now, kernel_.at(&task)));
  if (division.later.empty()) {
    FERRY_CHECK(lazy::send_idle_process(daemon_.get(), task.ns_pid()));
    return filled;
  }
  FERRY_TRY(const UniqueFd uffd, state::memory::make_userfaultfd(task));
  FERRY_CHECK(state::memory::await_pages(uffd.get(), *task.mm, division.later));
  FERRY_CHECK(lazy::send_process(daemon_.get(), task.ns_pid(), uffd.get()));
  return filled;
}

}  // namespace ferry::engine
