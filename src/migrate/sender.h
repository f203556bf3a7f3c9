// The source's side of one move, phase by phase.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "base/error.h"
#include "container/move_source.h"
#include "engine/options.h"
#include "migrate/door.h"
#include "migrate/hello.h"
#include "migrate/link.h"
#include "migrate/logbook.h"
#include "migrate/post_copy_line.h"
#include "migrate/post_copy_supply.h"
#include "migrate/progress.h"
#include "migrate/record.h"
#include "migrate/remote_shell.h"
#include "migrate/rounds.h"
#include "migrate/send.h"
#include "migrate/storage_out.h"
#include "migrate/streams_out.h"
#include "migrate/throttle.h"

namespace ferry::migrate {

class Sender {
 public:
  Sender(const SendOptions& options, container::Docker& docker, container::Departure& departure, Logbook& book,
         RemoteShell& shell, int interrupt)
      : options_(options),
        docker_(docker),
        departure_(departure),
        book_(book),
        shell_(shell),
        storage_(departure),
        link_(shell.take_output(), shell.take_input(), interrupt, options.destination),
        streams_(link_, options.streams),
        progress_(kPhases, options.quiet) {}

  Result<SendReport> run();

 private:
  // Everything that is done while the container runs on here.
  Result<void> prepare();

  Result<void> reach();

  Result<wire::Message> answer_of(std::chrono::milliseconds limit);

  Result<void> wait_done();

  Result<void> offer();

  Result<void> connect();

  Result<void> send_image();

  Result<void> create();

  Result<void> send_files();

  Result<std::uint64_t> send_piece(const wire::Message& head, const container::LeavingLog::Piece& piece);

  [[nodiscard]] engine::DumpOptions dump_options() const;

  // It does better than the engine's lock, behind which packets are lost.
  Result<Door> door_for(engine::DumpOptions& options) const;

  // The runtime needs to know what the tree looks like; a short look at it, without its memory.
  Result<void> start();

  // The skeletons get the clocks that the tree will find there.
  Result<std::string> with_clocks_of_destination(const std::string& look);

  // Memory, while the container goes on writing to it.
  Result<void> copy_ahead();

  // What is left is fetched by the destination when the container runs there.
  Result<void> postpone_rest();

  // Whether it can be sent while the container writes to it.
  Result<bool> watch_memory();

  // How to undo it has to be known to others before anything is done.
  Result<void> prepare_throttle();

  Result<void> hand_over();

  // A destination that refuses says why before its end of the connection closes.
  Error explained(Error error);

  // The container lives over there; whatever fails now is worth a note and no more.
  void finish();

  Result<void> send_rest();

  [[nodiscard]] const std::string& name() const { return departure_.container().name; }

  static constexpr std::chrono::minutes kWork{10};  // Docker loads an image, the disk takes a large layer
  static constexpr int kPhases = 9;

  const SendOptions& options_;
  container::Docker& docker_;
  container::Departure& departure_;
  bool keeps_addresses_ = false;      // the twin has the same ones
  std::set<NsPid> skeletons_;         // that the destination has
  std::set<std::uint32_t> segments_;  // shared memory that the destination has a file for
  std::optional<Rounds> rounds_;      // what was sent ahead
  double look_ms_ = 0;                // how long the look took
  std::optional<Throttle> throttle_;
  std::unique_ptr<PostCopySupply> supply_;  // of what is fetched after the hand-over
  std::unique_ptr<PostCopyLine> line_;      // uses it
  Logbook& book_;
  RemoteShell& shell_;
  StorageOut storage_;
  Link link_;
  StreamsOut streams_;
  Progress progress_;
  SendReport report_;
  HostFacts here_;
  HostFacts there_;
  ClockRelation clocks_;
  GivenRecord record_;
  std::set<std::string> present_;
  bool has_image_ = false;
  bool connected_ = true;
  container::LeavingLog log_;
};

}  // namespace ferry::migrate
