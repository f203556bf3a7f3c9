// Trackers between two runs of criu.
//
// A userfaultfd ends with its last descriptor, so a process of its own ("ferry-tracker") holds those of a tree
// from one pre-dump to the next.  It has no socket and answers nobody: a later run finds it in /proc, reads
// from a memory file of its what it holds and for which set of images, and takes duplicates out with
// pidfd_getfd(2).  It ends with the tree, when it is told to, or after a day; whoever does not find it saves
// all memory.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "state/memory/tracker.h"

namespace ferry::engine {

class TrackerKeeper {
 public:
  // Those that hold trackers of any of the processes.
  static Result<std::vector<TrackerKeeper>> find(const std::vector<HostPid>& pids);
  // Starts one, which shares no descriptor with us but the trackers'.  `set`: the id of the set since whose
  // making these trackers know what was written.
  static Result<void> start(const std::string& set, const std::vector<const state::memory::Tracker*>& trackers);

  // Empty while a set is being made, and if that failed: then the marks follow no set.
  [[nodiscard]] const std::string& set() const { return set_; }
  // The trackers of processes that still live.
  Result<std::vector<state::memory::Tracker>> take() const;
  // Nobody is to rely on the marks any more.
  Result<void> void_marks() const;
  // Waits until it has ended.
  Result<void> stop() const;

 private:
  struct Held {
    HostPid pid;
    std::uint64_t start_time = 0;
    int uffd = -1;  // its number there
    std::vector<sys::PageRange> distrusted;
  };
  static Result<TrackerKeeper> look_at(HostPid pid);
  Result<void> parse(std::string_view table);

  HostPid pid_;
  UniqueFd pidfd_;
  UniqueFd table_;
  std::string set_;
  std::vector<Held> held_;
};

// The table of a keeper as text, and back; for the tests.
std::string tracker_table(const std::string& set, const std::vector<const state::memory::Tracker*>& trackers);

}  // namespace ferry::engine
