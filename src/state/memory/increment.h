// What a set needs not hold because an earlier one does.
//
// A page is left to the parent set only if a Tracker says that it was not written since, and the parent is
// seen to have it: a doubt of either kind costs room, never a stale page.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "image/page_store.h"
#include "image/set.h"
#include "state/memory/tracker.h"

namespace ferry::state::memory {

// What a set whose pages went to a page server keeps of a process's pagemap, in the same format: the next one has to
// know what the server has.  No name of an image: the one that counts is with the server.
std::string sent_file_name(NsPid pid);

// The set that `parent` in a directory of images leads to.
class ParentSet {
 public:
  // Errors: gone (there is no such directory), corrupt, unsupported.
  static Result<ParentSet> open(int images_dir);
  // What its inventory says it is; empty if nothing (a set of CRIU's).
  [[nodiscard]] const std::string& id() const { return id_; }
  // The pages of a process that can be read from it or its own parents.  A damaged one has none, with a warning.
  std::vector<sys::PageRange> pages_of(NsPid pid);

 private:
  std::vector<sys::PageRange> pages_sent_of(NsPid pid) const;

  UniqueFd directory_;
  std::unique_ptr<image::Set> set_;
  std::unique_ptr<image::PageStore> store_;
  std::string id_;
};

class Increment {
 public:
  // `then`: whether further sets are to follow this one.
  explicit Increment(Then then) : then_(then) {}
  // From now on the process is tracked.  `in_parent`: what the parent set has of it.
  void track(Tracker tracker, std::vector<sys::PageRange> in_parent);
  [[nodiscard]] bool tracks(HostPid pid) const { return tasks_.contains(pid); }
  // Nothing is saved of these pages after all, or nothing that can be relied on.
  void distrust(HostPid pid, const std::vector<sys::PageRange>& pages);
  // For a process whose Tracker said `renewed`, or that has ended.
  void forget(HostPid pid) { tasks_.erase(pid); }

  struct Parts {
    std::vector<sys::PageRange> data;       // to be saved
    std::vector<sys::PageRange> in_parent;  // to be left to the parent
    std::vector<sys::PageRange> guards;
    bool renewed = false;
  };
  // Of a tracked process.  `mappings`: of a stopped one; nullptr: read from /proc.
  Result<Parts> divide(HostPid pid, const std::vector<sys::Mapping>* mappings);

  // For whoever keeps the trackers until the next set is made.
  [[nodiscard]] std::vector<const Tracker*> trackers() const;

 private:
  struct Task {
    Tracker tracker;
    std::vector<sys::PageRange> in_parent;
  };
  Then then_;
  std::map<HostPid, Task> tasks_;
};

}  // namespace ferry::state::memory
