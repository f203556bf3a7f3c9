// Pre-copy: the memory of a tree is sent while it runs, and what it writes meanwhile is sent again, until
// so little is left that it can be sent within the pause.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "image/set.h"
#include "migrate/controller.h"
#include "migrate/link.h"
#include "migrate/page_streams.h"
#include "migrate/post_copy_supply.h"
#include "migrate/progress.h"
#include "migrate/segments_out.h"
#include "migrate/storage_out.h"
#include "migrate/throttle.h"
#include "state/dump.h"
#include "state/memory/tracker.h"

namespace ferry::migrate {

struct Round {
  double ms = 0;
  double scan_ms = 0;       // for finding what was written, in shared memory too
  double files_ms = 0;      // for files that changed
  std::uint64_t bytes = 0;  // of pages that were sent, without those of zeros
  std::uint64_t wire = 0;   // what crossed for them
  std::uint64_t dirty = 0;  // bytes that had been written since the round before; all of them in the first
  double share = 1;         // of its processor time that the container had
  double predicted_ms = 0;  // the pause, were the container stopped after this round; 0 where nothing is known
};

class Rounds {
 public:
  // Begins to watch those processes of the tree that have a skeleton at the destination; each is stopped for a
  // fraction of a millisecond.  One that ends meanwhile is passed over, one that comes later is sent in the
  // freeze.
  // Errors: unsupported, if this kernel cannot watch memory.
  static Result<Rounds> watch(Link& control, PageStreams& streams, HostPid root, std::set<NsPid> skeletons);
  // Watches nothing: all memory is sent in the freeze, to its final place nevertheless.
  static Rounds none(Link& control, PageStreams& streams, std::set<NsPid> skeletons) {
    return {control, streams, std::move(skeletons)};
  }
  // Shared memory goes with the rounds as well, and in the freeze only what differs.
  void take_along(SegmentsOut segments) { segments_ = std::move(segments); }
  // Shared memory alone, until little of it is written meanwhile, where private memory comes later.
  Result<void> send_segments(Progress& progress);
  Rounds(Rounds&&) = default;
  Rounds& operator=(Rounds&&) = default;

  // Sends until the controller says hand_over, postpone or give_up, which is the value.
  // `throttle`: nullptr if the container must not be slowed down, or cannot be.
  // `storage`: files that changed go before each round of memory.
  Result<Controller::Step> run(const Controller::Limits& limits, Progress& progress, Throttle* throttle,
                               StorageOut* storage = nullptr);

  // What can wait is not sent in the freeze: it is left to `supply`, which has to outlive this.  The destination drops
  // what it has of that while there is time.
  Result<void> postpone(PostCopySupply& supply);
  [[nodiscard]] std::uint64_t postponed_bytes() const { return postponed_bytes_; }

  // Right before the freeze: what was written while all was made ready for it need not cross within the pause.
  Result<void> catch_up();

  // In the freeze, once the tree's memory is final: begins to look for what was written since the last round, and to
  // send it, while the caller goes on to look at the rest of the tree.
  Result<void> begin_last(std::span<const std::unique_ptr<state::DumpTask>> tasks);
  // After that: adds the list of all pages that belong to the task to the set.  False if the process has no skeleton.
  Result<bool> last(state::DumpTask& task, image::Set& set);
  // Takes the content of shared memory in the freeze; nullptr if nothing of it was sent ahead.
  std::unique_ptr<image::PageSink> last_of_segment(image::Name pagemap) { return segments_.last(*streams_, pagemap); }
  // When all of that has left.
  void ended();

  [[nodiscard]] const std::vector<Round>& rounds() const { return rounds_; }

 private:
  struct Watched {
    NsPid ns_pid;
    state::memory::Tracker tracker;
    state::memory::Reading reading = state::memory::Reading::fast;
  };
  Rounds(Link& control, PageStreams& streams, std::set<NsPid> skeletons)
      : control_(&control), streams_(&streams), skeletons_(std::move(skeletons)) {}
  // `progress`: nullptr to show nothing.
  Result<Round> round(Progress* progress);
  Result<void> await_done(std::string_view what, std::chrono::milliseconds patience);
  void spare_relatives();
  // Since the last round, in every watched process.
  std::map<NsPid, std::vector<sys::PageRange>> written_since();

  struct LastLook {
    state::memory::Scan scan;
    std::shared_ptr<const UniqueFd> memory;  // /proc/PID/mem
    state::memory::Reading reading;
  };
  Result<state::memory::Scan> last_scan(const state::DumpTask& task);

  Link* control_;
  PageStreams* streams_;
  std::set<NsPid> skeletons_;
  std::map<HostPid, Watched> watched_;
  SegmentsOut segments_;
  std::vector<Round> rounds_;
  PostCopySupply* supply_ = nullptr;
  std::uint64_t postponed_bytes_ = 0;
  // The last one, in the freeze.
  std::optional<std::chrono::steady_clock::time_point> last_begun_;
  std::map<HostPid, LastLook> looks_;
  std::uint64_t content_before_ = 0;
  std::uint64_t wire_before_ = 0;
};

}  // namespace ferry::migrate
