// The destination's side of one move, message by message.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "container/bundle.h"
#include "container/move_target.h"
#include "engine/reference.h"
#include "engine/twin.h"
#include "migrate/guard.h"
#include "migrate/held_output.h"
#include "migrate/link.h"
#include "migrate/logbook.h"
#include "migrate/message.pb.h"
#include "migrate/pages.h"
#include "migrate/post_copy_intake.h"
#include "migrate/record.h"
#include "migrate/segments_in.h"
#include "migrate/storage_in.h"
#include "migrate/streams_in.h"
#include "migrate/understudy.h"

namespace ferry::migrate {

// What the source has brought us to.
enum class Stage {
  greeted,  // from the handshake; to offered by Offer; Ask and Join end here
  offered,  // to created by Create; Image stays here
  created,  // there is a twin; Layer and LogFile stay here, Start leads to started
  started,  // its skeleton is ours; Precopy, pages, Round, PostCopy, Stale and Delta stay here, Images leads to grown
  grown,    // only Given leads on
  taken,    // it runs here; LogTail stays here, Finish ends
};

class Receiver {
 public:
  Receiver(Link& link, container::Docker& docker, Guard& guard, std::string source)
      : link_(link), docker_(docker), guard_(guard), source_(std::move(source)) {}
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;
  ~Receiver();

  // Until the source has what it wanted, or has gone away.  Errors: what it could not be told.
  Result<void> serve();

 private:
  // The skeletons die first, so that Docker finds a container that has ended.
  bool leave();

  // True when there is nothing more to do.
  Result<bool> step();

  Result<bool> handle(const wire::Message& message);

  // A pidfd is readable when its process has ended (pidfd_open(2)).
  [[nodiscard]] bool twin_died() const;

  Result<void> expect(Stage stage, std::string_view what) const;

  Result<bool> done(std::uint64_t bytes = 0, std::uint64_t entries = 0);

  Result<bool> pong();

  // A source in doubt.  Whoever has not taken by now never will.
  Result<bool> answer(const wire::Ask& ask);

  // For the process on this host that fetches the memory of a tree that runs already.
  Result<bool> join(const wire::Join& join);

  Result<bool> offered(const wire::Offer& offer);

  Result<void> open_logbook();

  Result<bool> image();

  Result<bool> create();

  // The twin is not started yet, or its output is held: nobody else writes.
  Result<bool> log_file(const std::string& suffix);

  Result<bool> start(const wire::Start& start);

  [[nodiscard]] Result<std::string> freeze_cgroup_of(const container::ShimInfo& shim) const;

  // Docker works in a thread with a connection of its own, while this thread serves the criu it starts.
  Result<engine::Skeleton> serve_start(engine::ReferenceServer& server, const std::string& checkpoint,
                                       const std::string& set);

  Result<bool> precopy();

  // What is missing at the hand-over is fetched when the tree runs.
  Result<bool> post_copy();

  Result<bool> stale(const wire::Stale& stale);

  // Straight to where they will be, if that is there already.  Called by several threads.
  Result<void> put(image::Name name, std::span<const ArrivedPages> runs);

  Result<bool> grow();

  // They are for the tree that goes on here.
  Result<bool> packets(const wire::Packets& packets);

  // A packet that is lost is sent again by who sent it, only later.
  void deliver_packets();

  Result<bool> take();

  // From here on the tree outlives us: if we are killed it is let go by the kernel, and frozen, until whoever comes
  // after us (understudy, guard, resolve) has seen whether it was taken.  The source is writing its record meanwhile.
  Result<void> prepare_for_our_death();

  // The tree runs.  Until its last page has come, this process must not end: nobody else can serve its faults.
  Result<void> fetch_rest();

  Result<Understudy> post_understudy();

  // The source is slow or gone: the twin's own lines may be printed before the last of the source.
  Result<bool> output_is_late(const Error& error);

  Result<bool> finish();

  Result<void> give_up(Error error);

  // The twin's output is held back until the source's last lines are here; not for ever, since a program
  // that prints a lot would then stand still.
  static constexpr std::chrono::seconds kHoldLimit{10};
  static constexpr std::uint64_t kSetLimit = 1ULL << 30;  // bytes

  Link& link_;
  container::Docker& docker_;
  Guard& guard_;
  std::string source_;
  std::optional<Logbook> book_;  // from the offer on
  std::string why_;              // it ends without the container
  int round_ = 0;
  Stage stage_ = Stage::greeted;
  std::string move_;
  std::optional<container::Arrival> arrival_;
  std::optional<StorageIn> storage_;        // uses it
  std::unique_ptr<PostCopyIntake> intake_;  // of a post-copy; outlives the twin
  image::Set looked_at_;                    // what the twin's skeleton was made from
  std::optional<engine::Twin> twin_;
  std::optional<PageFiles> pages_;
  SegmentsIn segments_;
  std::mutex where_pages_go_;  // held while that changes, and for what is not thread-safe about it
  BatchReader reader_;         // of pages that come over the remote shell
  StreamsIn streams_{link_};   // last: its threads use what is above
  std::optional<Draft> taken_record_;
  std::vector<std::string> packets_;  // that the container has not had yet
  Laps laps_;
  HostPid root_;
  UniqueFd twin_pidfd_;
  HostPid shim_;
  std::string freeze_cgroup_;
  bool held_still_ = false;  // frozen, and not ours to kill by ptrace
  std::optional<Understudy> understudy_;
  HeldOutput held_;
  bool has_log_ = false;
  bool late_ = false;
  std::optional<wire::Fetched> fetched_;
  std::vector<std::string> notes_;
};

}  // namespace ferry::migrate
