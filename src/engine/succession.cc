#include "engine/succession.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "engine/list_tree.h"
#include "sys/file.h"
#include "sys/proc.h"
#include "sys/userfaultfd.h"

namespace ferry::engine {
namespace {

using state::memory::Increment;
using state::memory::ParentSet;
using state::memory::Then;
using state::memory::Tracker;

Result<NsPid> inner_number(HostPid pid) {
  FERRY_TRY(const auto text, sys::read_file(fmt::format("/proc/{}/status", pid)));
  FERRY_TRY(const auto status, sys::parse_status(text));
  return NsPid(status.ns_tgid.empty() ? pid.value : status.ns_tgid.back());
}

}  // namespace

Result<void> link_parent(int images_dir, const std::string& to) {
  const auto there = sys::open_at(images_dir, to, O_RDONLY | O_DIRECTORY);
  if (!there.has_value()) {
    return fail(Kind::invalid, "--prev-images-dir {}: {} (it is looked for from the images directory)", to,
                there.error().what);
  }
  if (::unlinkat(images_dir, "parent", 0) != 0 && errno != ENOENT) {
    return sys_fail("unlinkat(parent)");
  }
  if (::symlinkat(to.c_str(), images_dir, "parent") != 0) {
    return sys_fail(fmt::format("symlinkat({}, parent)", to));
  }
  return {};
}

Result<void> Succession::begin(const DumpOptions& options, bool followed) {
  followed_ = followed;
  if (followed_) {
    FERRY_TRY(const bool able, sys::has_write_tracking());
    if (!able) {
      return fail(Kind::unsupported, "this kernel cannot track what a program writes (Linux 6.7 can)");
    }
  }
  if (!options.parent_images.empty()) {
    FERRY_CHECK(link_parent(options.images_dir, options.parent_images));
    auto parent = ParentSet::open(options.images_dir);
    if (parent.has_value()) {
      parent_ = std::move(*parent);
    } else {
      log::warning("all memory is saved: the set in {} cannot be built upon: {}", options.parent_images,
                   parent.error().message());
    }
  }
  if (followed_ || parent_.has_value()) {
    increment_.emplace(followed_ ? Then::protect : Then::leave);
    FERRY_CHECK(take_over(options));
  }
  return {};
}

Result<void> Succession::take_over(const DumpOptions& options) {
  FERRY_TRY(auto keepers, TrackerKeeper::find(list_tree(options.pid)));
  for (TrackerKeeper& keeper : keepers) {
    if (parent_.has_value() && !keeper.set().empty() && keeper.set() == parent_->id()) {
      FERRY_TRY(auto trackers, keeper.take().during("taking over the trackers of the parent set"));
      found_ = true;
      for (Tracker& tracker : trackers) {
        const auto pid = inner_number(tracker.pid());
        if (pid.has_value()) {
          track(std::move(tracker), *pid);
        }
      }
    }
    if (followed_) {
      // The marks are about to be used up, and there can be one tracker of a process only.
      FERRY_CHECK(keeper.void_marks());
      FERRY_CHECK(keeper.stop());
    } else if (found_) {
      keepers_.push_back(std::move(keeper));
    }
  }
  if (parent_.has_value() && !found_) {
    log::warning("all memory is saved: nobody has tracked pid {} since the set in {} was made", options.pid,
                 options.parent_images);
  }
  return {};
}

void Succession::track(Tracker tracker, NsPid pid) {
  auto in_parent = parent_.has_value() ? parent_->pages_of(pid) : std::vector<sys::PageRange>();
  increment_->track(std::move(tracker), std::move(in_parent));
}

Result<void> Succession::track_all(std::vector<std::unique_ptr<state::DumpTask>>& tasks) {
  if (!followed_) {
    return {};
  }
  for (auto& task : tasks) {
    if (task->zombie || increment_->tracks(task->pid)) {
      continue;
    }
    auto tracker = Tracker::install(task->process, task->stat.start_time, task->mappings);
    if (!tracker.has_value()) {
      log::warning("pid {} is not tracked, the next set has all its memory: {}", task->pid, tracker.error().message());
      continue;
    }
    increment_->track(std::move(*tracker), {});
  }
  return {};
}

Result<void> Succession::hand_on(const std::string& set_id) {
  return followed_ ? TrackerKeeper::start(set_id, increment_->trackers()) : Result<void>();
}

void Succession::end() {
  for (const TrackerKeeper& keeper : keepers_) {
    if (auto stopped = keeper.stop(); !stopped.has_value()) {
      log::warning("{}", stopped.error().message());
    }
  }
}

}  // namespace ferry::engine
