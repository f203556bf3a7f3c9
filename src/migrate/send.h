// The source's side of a move: `ferry migrate` and `ferry resolve`.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "container/volume.h"
#include "migrate/progress.h"
#include "migrate/rounds.h"
#include "migrate/streams_out.h"

namespace ferry::migrate {

enum class Mode : std::uint8_t {
  automatic,  // rounds, and post-copy if they do not bring the pause under its limit
  pre_copy,   // all memory is on the destination before the container runs there
  post_copy,  // the container runs there first, its memory follows
};

struct SendOptions {
  std::string container;  // id or name
  std::string destination;
  std::string rsh = "ssh";
  bool keep_source = false;
  bool drop_exec = false;
  bool tcp_close = false;
  Mode mode = Mode::automatic;
  bool precopy = true;                           // memory is sent while the container runs
  std::chrono::milliseconds downtime_limit{20};  // the rounds go on until the rest takes no longer
  int max_rounds = 30;
  std::chrono::seconds timeout{600};  // for the rounds
  bool auto_converge = true;          // a container that writes too fast is slowed down
  bool switch_anyway = false;         // when rounds or time are used up; otherwise the container stays
  StreamOptions streams;
  container::VolumeChoice volumes;
  bool quiet = false;  // nothing on standard output
};

struct SendReport {
  std::string container;           // name
  double pause_ms = 0;             // from before the first thread was stopped until the tree ran again
  double pause_error_ms = 0;       // how wrong that may be, since two clocks were read
  double predicted_pause_ms = 0;   // by the last round; 0 if there was none
  std::vector<Round> rounds;       // of memory, the last ones within the pause
  std::vector<Phase> pause_parts;  // what it was spent on
  std::size_t streams = 0;         // direct connections; 0: everything went through the remote shell
  std::uint64_t bytes = 0;         // all that was sent
  std::uint64_t image_bytes = 0;
  std::uint64_t layer_bytes = 0;
  std::uint64_t memory_bytes = 0;
  std::uint64_t postponed_bytes = 0;  // of memory, fetched after the hand-over
  struct Fetched {
    std::uint64_t pages = 0;                              // those of zeros apart
    double ms = 0;                                        // from when the container ran until the last one was there
    std::uint64_t faults = 0, median_us = 0, p99_us = 0;  // that waited for one, and how long
  } fetched;                                              // what the destination says of that
  std::vector<Phase> phases;
  std::vector<std::string> notes;
};

// On an error the container runs on here as if nothing had been tried.  It does not return before it is
// known who has the container; if it is interrupted while that is unknown, the process ends, the
// container stays frozen, and a guard process goes on asking.
// Starts a guard process, so the caller must have a single thread; blocks signals and ignores SIGPIPE.
Result<SendReport> send(const SendOptions& options);

}  // namespace ferry::migrate
