// One set of images in a row of them: what it takes from the one before, and what it leaves to the next.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/options.h"
#include "engine/tracker_keeper.h"
#include "state/dump.h"
#include "state/memory/increment.h"

namespace ferry::engine {

// criu(8): --prev-images-dir is relative to the images directory and becomes the link "parent" there.
Result<void> link_parent(int images_dir, const std::string& to);

class Succession {
 public:
  // Before anything is stopped.  Links the parent set (options.parent_images) and finds who has tracked the
  // tree since it was made; if nobody has, says so in the log.  `followed`: another set is to follow this one.
  // Errors: invalid (there is no such parent); unsupported (`followed` on a kernel without write tracking).
  Result<void> begin(const DumpOptions& options, bool followed);

  // nullptr: there is no parent, and nothing follows.
  state::memory::Increment* increment() { return increment_.has_value() ? &*increment_ : nullptr; }
  [[nodiscard]] bool has_parent() const { return parent_.has_value() && found_; }
  // What the parent set has of the process that is to be tracked from now on.
  void track(state::memory::Tracker tracker, NsPid pid);
  // All processes of a stopped tree that are not tracked yet, if another set is to follow.
  Result<void> track_all(std::vector<std::unique_ptr<state::DumpTask>>& tasks);

  // The set is complete, and the tree lives on.
  Result<void> hand_on(const std::string& set_id);
  // The tree is gone.
  void end();

 private:
  Result<void> take_over(const DumpOptions& options);

  bool followed_ = false;
  bool found_ = false;  // somebody who tracked the tree since the parent set was made
  std::optional<state::memory::ParentSet> parent_;
  std::optional<state::memory::Increment> increment_;
  std::vector<TrackerKeeper> keepers_;
};

}  // namespace ferry::engine
