// The frozen part of a move: a Keeper that streams the tree, and lets the source end only when the
// destination has said that it took it.
#pragma once

#include <signal.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string>

#include "base/error.h"
#include "base/laps.h"
#include "engine/keeper.h"
#include "migrate/door.h"
#include "migrate/link.h"
#include "migrate/logbook.h"
#include "migrate/post_copy_line.h"
#include "migrate/record.h"
#include "migrate/rounds.h"
#include "migrate/storage_out.h"
#include "migrate/streams_out.h"

namespace ferry::migrate {

// For a look at the tree: keeps the images and drops the pages.
class LookKeeper : public engine::Keeper {
 public:
  // `door`: what arrives during the look waits.
  explicit LookKeeper(Door& door) : door_(door) {}
  Result<void> about_to_stop() override;
  Result<bool> memory(state::DumpTask&, image::Set&) override { return true; }
  Result<std::unique_ptr<image::PageSink>> pages(image::Set& set, image::Name pagemap) override;
  Result<void> images(const image::Set& set) override;
  Result<Verdict> end() override;
  // How long the tree stood still.
  [[nodiscard]] double stopped_ms() const { return static_cast<double>(ended_ns_ - began_ns_) / 1e6; }
  [[nodiscard]] const std::string& encoded() const { return encoded_; }
  // Those that are alive.
  [[nodiscard]] const std::set<NsPid>& processes() const { return processes_; }
  // Shared memory that can be sent ahead, by its shmid.
  [[nodiscard]] const std::set<std::uint32_t>& segments() const { return segments_; }

 private:
  Door& door_;
  std::uint64_t began_ns_ = 0, ended_ns_ = 0;
  std::string encoded_;
  std::set<NsPid> processes_;
  std::set<std::uint32_t> segments_;
};

class HandOver : public engine::Keeper {
 public:
  // `rounds`: what was sent ahead; nullptr if nothing was.  `throttle`: likewise.  `line`: by which the destination
  // fetches the rest; nullptr if it has everything.
  HandOver(Link& link, StreamsOut& streams, StorageOut& storage, Logbook& book, GivenRecord record, Rounds* rounds,
           Throttle* throttle, Door& door, PostCopyLine* line = nullptr)
      : link_(link),
        streams_(streams),
        storage_(storage),
        book_(book),
        record_(std::move(record)),
        rounds_(rounds),
        throttle_(throttle),
        door_(door),
        line_(line) {}

  Result<void> about_to_stop() override;
  std::function<Result<void>()> ahead_of_memory(std::span<const std::unique_ptr<state::DumpTask>> tasks) override {
    return rounds_ == nullptr ? std::function<Result<void>()>() : [this, tasks] { return rounds_->begin_last(tasks); };
  }
  Result<bool> memory(state::DumpTask& task, image::Set& set) override {
    return rounds_ == nullptr ? Result<bool>(false) : rounds_->last(task, set);
  }
  Result<std::unique_ptr<image::PageSink>> pages(image::Set& set, image::Name pagemap) override;
  Result<void> images(const image::Set& set) override;
  Result<Verdict> end() override;

  [[nodiscard]] bool taken() const { return taken_; }
  // On the destination's clock; none if that was learned only by asking.
  [[nodiscard]] std::uint64_t resumed_ns() const { return resumed_ns_; }
  // What the destination did within the pause.
  [[nodiscard]] const std::vector<Lap>& their_parts() const { return their_parts_; }
  // Whether the connection survived.
  [[nodiscard]] bool connected() const { return connected_; }
  // On our clock: when the last page was sent, when the changed files were, when the tree was given.
  struct Times {
    std::uint64_t begun_ns = 0;  // the last moment at which everything ran; 0: it did not come to that
    std::uint64_t memory_ns = 0;
    std::uint64_t files_ns = 0;
    std::uint64_t given_ns = 0;
  };
  [[nodiscard]] const Times& times() const { return times_; }

 private:
  Result<void> send_packets();
  Result<Verdict> decided(Decision decision, const std::string& reason);
  Result<void> serve_rest();
  Result<Verdict> ask_until_known(const Error& broken);

  Link& link_;
  StreamsOut& streams_;
  StorageOut& storage_;
  Logbook& book_;
  GivenRecord record_;
  Rounds* rounds_;
  Throttle* throttle_;
  Door& door_;
  PostCopyLine* line_;
  bool taken_ = false;
  std::vector<Lap> their_parts_;
  bool connected_ = true;
  std::uint64_t resumed_ns_ = 0;
  Times times_;
};

}  // namespace ferry::migrate
