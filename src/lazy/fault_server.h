// Fills memory that is missing, while the programs run on it.
//
// Whoever touches a missing page sleeps until it is there: faults are served first, then their neighbours, then
// everything else in the order of addresses.  A page is fetched once, for all the processes that forks have made
// meanwhile.  What never had content becomes zeros.  A page that cannot be had is never made up: who needs it waits
// until its source has it again.
//
// The kernel gives zeros to a program whose userfaultfd nobody holds any more; so the process that runs this must
// live until nothing is missing.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "base/error.h"
#include "base/ids.h"
#include "base/unique_fd.h"
#include "lazy/missing.h"
#include "lazy/page_source.h"
#include "state/memory/page_set.h"
#include "sys/missing_pages.h"

namespace ferry::lazy {

struct FaultReport {
  std::uint64_t pages = 0;                  // put in place, zeros apart
  std::uint64_t faults = 0;                 // that had to wait for content
  std::uint64_t median_us = 0, p99_us = 0;  // from when a fault was read until its page was there
};

// What a source is asked for.
enum class Lane : std::uint8_t {
  all,
  background,  // all, while there is none for faults
  faults,      // only what somebody waits for: nothing else stands before it on its connection
};

class FaultServer {
 public:
  FaultServer();
  // The one that is added first is asked first.  A source has to outlive the server.
  void add_source(PageSource& source, Lane lane = Lane::all);
  // A process whose registered memory lacks these pages.  `uffd`: nonblocking, negotiated (sys/missing_pages.h).
  Result<void> add_process(NsPid pid, UniqueFd uffd, Missing missing);
  // Calls back when a descriptor of somebody else's is readable, until the answer is false.
  Result<void> watch(int fd, std::function<Result<bool>()> ready);

  // Told of every descriptor of a process' memory that the server holds from now on, or no longer; before it is used,
  // and after it was closed.
  void watch_descriptors(std::function<void(int uffd, bool held)> told) { told_ = std::move(told); }
  // Returns when nothing is missing and nothing is watched.  Errors: os, of the server's own means only.
  Result<void> run();
  [[nodiscard]] FaultReport report() const;
  [[nodiscard]] std::uint64_t missing_bytes() const;
  // Whether there is a process that lacks pages.
  [[nodiscard]] bool idle() const { return spaces_.empty(); }

 private:
  using Clock = std::chrono::steady_clock;
  // What is under way over a connection keeps the answer to a fault waiting; this much costs it about 50 us.
  static constexpr std::uint64_t kFirstChunk = 32U << 10;
  // Where faults have a connection of their own, only the copying of what has come keeps them waiting.
  static constexpr std::uint64_t kChunkBesideFaults = 128U << 10;
  static constexpr std::chrono::milliseconds kRetryAfter{500};
  struct Space {
    NsPid pid;  // whose pagemap has the content
    UniqueFd uffd;
    Missing missing;
    bool closed = false;
  };
  struct Fault {
    Space* space;
    std::uint64_t page;
  };
  struct Source {
    PageSource* source;
    Lane lane = Lane::all;
    bool lost = false;
  };
  struct Asked {
    state::memory::PageSet flying;  // asked for, not arrived
    state::memory::PageSet urgent;  // of these, what was asked for where only faults are
    state::memory::PageSet stuck;   // arrived and not readable: to be tried again later
  };
  using Page = std::pair<NsPid, std::uint64_t>;

  Result<void> add_space(std::unique_ptr<Space> space);
  Result<void> read_events(Space& space);
  Result<void> serve_faults();
  Result<void> serve(const Fault& fault);
  Result<void> fill_with_zero(const Fault& fault);
  Result<bool> ask(const PageSource::Range& range, bool fault = false);
  [[nodiscard]] bool has_fast_lane(const PageSource::Range& range) const;
  Result<void> take_pending();
  Result<void> take_from(Source& source);
  Result<void> deliver(const PageSource::Piece& piece);
  Result<void> deliver_to(Space& space, const PageSource::Piece& piece);
  Result<bool> go_on_in_background();
  Result<bool> ask_about_hints();
  [[nodiscard]] std::vector<sys::PageRange> askable(NsPid pid, std::uint64_t start, std::uint64_t end);
  void arrived(NsPid pid, std::uint64_t start, std::uint64_t end);
  void lose(Source& source, const Error& error);
  Result<void> retry();
  void forget_closed();

  UniqueFd epoll_;
  std::vector<std::unique_ptr<Space>> spaces_;
  std::vector<Source> sources_;
  std::map<int, std::function<Result<bool>()>> watched_;
  std::function<void(int, bool)> told_;
  std::map<NsPid, Asked> asked_;
  std::vector<Fault> faults_;                  // read, not served yet
  std::map<Page, Clock::time_point> waiting_;  // origins that somebody waits for
  std::vector<Page> hints_;                    // where faults were, the last one at the end
  std::uint64_t flying_ = 0;                   // bytes asked for, not arrived
  std::uint64_t chunk_ = kFirstChunk;          // what the background asks for at a time
  std::size_t next_space_ = 0;                 // where the background goes on
  std::uint64_t next_address_ = 0;
  Clock::time_point last_fault_{};
  bool told_unreadable_ = false;
  bool trouble_ = false;  // something is lost or stuck
  Clock::time_point next_try_{};
  std::vector<std::uint32_t> latencies_us_;
  FaultReport report_;
};

}  // namespace ferry::lazy
