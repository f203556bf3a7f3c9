// In which order the processes of a tree have to be made, so that each ends up with the parent, session and
// process group it had.
//
// A session can only be inherited at birth or founded (setsid(2)), a group only be founded or joined within
// the session (setpgid(2)), and a parent is who cloned the process, that one's parent (CLONE_PARENT), or the
// nearest subreaper above when the parent ended.  So who was born before its parent's setsid(2) is made
// before it; sessions and groups whose leader is dead get a helper with the leader's number for as long as
// that takes; and who was handed to its parent when its own died is handed to it again.
//
// Pure planning: the steps are carried out in grow_tree.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"

namespace ferry::engine {

struct Person {
  std::uint32_t pid = 0;
  std::optional<std::size_t> parent;  // index of a person before this one; none: the root
  std::uint32_t pgid = 0, sid = 0;    // 0: from outside of the tree
  int exit_signal = 17;               // SIGCHLD
};

struct BirthStep {
  enum class What {
    child,       // `who` clones `whom`
    sibling,     // `who` clones `whom` with CLONE_PARENT
    lead,        // `who` calls setsid(2)
    group,       // `who` joins or founds `group`; 0: goes back to the one from outside
    reaper_on,   // `who` becomes a subreaper
    reaper_off,  // and is none any more
    end,         // the helper `whom` exits, and its parent `who` waits for it
  } what;
  std::size_t who = 0;  // index of a person; from plan.persons on, of a helper
  std::size_t whom = 0;
  std::uint32_t group = 0;
};

struct BirthPlan {
  std::size_t persons = 0;
  std::vector<std::uint32_t> helpers;  // their numbers; 0: any that is free
  std::vector<BirthStep> steps;
};

// `tree`: parents before children, the root first.  Errors: unsupported, naming the process whose session
// no order of births explains.
Result<BirthPlan> plan_births(const std::vector<Person>& tree);

}  // namespace ferry::engine
