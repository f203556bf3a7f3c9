// Pre-copy: the memory of a tree is sent while it runs, and what it writes meanwhile is sent again, until
// so little is left that it can be sent within the pause.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "image/set.h"
#include "migrate/link.h"
#include "migrate/progress.h"
#include "state/dump.h"
#include "state/memory/tracker.h"

namespace ferry::migrate {

struct RoundLimits {
  std::chrono::milliseconds downtime{20};  // as long as the last pages may take
  int rounds = 30;
  std::chrono::seconds time{600};
};

struct Round {
  double ms = 0;
  std::uint64_t bytes = 0;  // of pages that were sent, without those of zeros
  std::uint64_t dirty = 0;  // bytes that had been written since the round before; all of them in the first
};

class Rounds {
 public:
  // Begins to watch those processes of the tree that have a skeleton at the destination; each is stopped for a
  // fraction of a millisecond.  One that ends meanwhile is passed over, one that comes later is sent in the
  // freeze.
  // Errors: unsupported, if this kernel cannot watch memory.
  static Result<Rounds> watch(Link& link, HostPid root, std::set<NsPid> skeletons);
  Rounds(Rounds&&) = default;
  Rounds& operator=(Rounds&&) = default;

  // Sends until what is left fits into the limit.  The value says whether it does: false when rounds or time
  // are used up, or when rounds do not bring it down any more.
  Result<bool> run(const RoundLimits& limits, Progress& progress);

  // In the freeze: what was written since the last round, and the list of all pages that belong to the task,
  // as an image of the set.  False if the process has no skeleton.
  Result<bool> last(state::DumpTask& task, image::Set& set);

  [[nodiscard]] const std::vector<Round>& rounds() const { return rounds_; }

 private:
  struct Watched {
    NsPid ns_pid;
    state::memory::Tracker tracker;
  };
  Rounds(Link& link, std::set<NsPid> skeletons) : link_(&link), skeletons_(std::move(skeletons)) {}
  Result<Round> round(Progress& progress);
  Result<void> send(HostPid pid, NsPid ns_pid, int memory, const std::vector<sys::PageRange>& ranges, Round& round);

  Result<state::memory::Scan> last_scan(state::DumpTask& task);

  Link* link_;
  std::set<NsPid> skeletons_;
  std::map<HostPid, Watched> watched_;
  std::vector<Round> rounds_;
  std::vector<std::byte> buffer_;
};

}  // namespace ferry::migrate
