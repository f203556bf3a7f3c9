// The content: asking sources for it, putting it in its place, and what to do when it cannot be had.
#include <poll.h>
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "image/page_store.h"
#include "lazy/fault_server.h"
#include "state/memory/pages.h"

namespace ferry::lazy {
namespace {

constexpr std::uint64_t kPage = image::kPageSize;
constexpr std::uint64_t kLastChunk = 1U << 20;
constexpr std::chrono::milliseconds kQuiet{10};  // without a fault, before the background takes larger steps
// A copy that has begun keeps faults waiting: no more than this at a time.
constexpr std::uint64_t kStep = 128U << 10;
constexpr std::uint64_t kNeighbourhood = 32U << 10;  // of a fault, brought right after it
constexpr std::size_t kMaxLatencies = 1U << 20;

}  // namespace

// The parts of an origin range that nobody was asked for.
std::vector<sys::PageRange> FaultServer::askable(NsPid pid, std::uint64_t start, std::uint64_t end) {
  const Asked& asked = asked_[pid];
  std::vector<sys::PageRange> out{{start, end}};
  if (!asked.flying.empty()) {
    out = state::memory::without(out, asked.flying.ranges());
  }
  if (!asked.stuck.empty()) {
    out = state::memory::without(out, asked.stuck.ranges());
  }
  return out;
}

bool FaultServer::has_fast_lane(const PageSource::Range& range) const {
  return std::any_of(sources_.begin(), sources_.end(), [&](const Source& source) {
    return source.lane == Lane::faults && !source.lost && source.source->covers(range) != 0;
  });
}

// False if nobody can be asked now.
Result<bool> FaultServer::ask(const PageSource::Range& range, bool fault) {
  bool any = false;
  for (std::uint64_t at = range.start; at < range.end;) {
    const bool fast = fault && has_fast_lane({range.pid, at, range.end});
    std::uint64_t covered = 0;
    for (Source& source : sources_) {
      if (source.lane != Lane::all && (source.lane == Lane::faults) != fast) {
        continue;
      }
      covered = source.source->covers({range.pid, at, range.end});
      if (covered == 0) {
        continue;
      }
      if (source.lost) {
        break;
      }
      const PageSource::Range part{range.pid, at, at + covered};
      if (const auto asked = source.source->ask(part); !asked.has_value()) {
        lose(source, asked.error());
        break;
      }
      Asked& asked_of_it = asked_[range.pid];
      if (fast) {
        asked_of_it.urgent.add(part.start, part.end);
      }
      // A page that overtakes itself flies once.
      const bool flies = asked_of_it.flying.covers(part.start, part.end);
      asked_of_it.flying.add(part.start, part.end);
      flying_ += flies ? 0 : covered;
      any = true;
      if (source.source->descriptor() < 0) {
        FERRY_CHECK(take_from(source));
      }
      break;
    }
    if (covered == 0) {
      log::error({Kind::corrupt,
                  0,
                  fmt::format("page {:#x} of process {} is in no image and with no page server; who "
                              "touches it waits",
                              at, range.pid),
                  {},
                  __FILE__,
                  __LINE__});
      asked_[range.pid].stuck.add(at, at + kPage);
      covered = kPage;
    }
    at += covered;
  }
  return any;
}

Result<void> FaultServer::take_from(Source& source) {
  for (bool more = true; more && !source.lost;) {
    const auto piece = source.source->take();
    if (!piece.has_value()) {
      lose(source, piece.error());
      return {};
    }
    if (!piece->has_value()) {
      return {};
    }
    FERRY_CHECK(deliver(**piece));
    // A connection has a say again after the faults that came meanwhile.
    more = source.source->descriptor() < 0;
  }
  return {};
}

Result<void> FaultServer::deliver(const PageSource::Piece& piece) {
  arrived(piece.pid, piece.vaddr, piece.vaddr + piece.size());
  for (std::size_t i = 0; i < spaces_.size(); ++i) {  // a fork may add one meanwhile
    if (spaces_[i]->pid == piece.pid && !spaces_[i]->closed) {
      FERRY_CHECK(deliver_to(*spaces_[i], piece));
    }
  }
  const auto now = Clock::now();
  auto waiting = waiting_.lower_bound({piece.pid, piece.vaddr});
  while (waiting != waiting_.end() && waiting->first < Page{piece.pid, piece.vaddr + piece.size()}) {
    if (latencies_us_.size() < kMaxLatencies) {
      latencies_us_.push_back(static_cast<std::uint32_t>(
          std::chrono::duration_cast<std::chrono::microseconds>(now - waiting->second).count()));
    }
    ++report_.faults;
    waiting = waiting_.erase(waiting);
  }
  return {};
}

Result<void> FaultServer::deliver_to(Space& space, const PageSource::Piece& piece) {
  const std::uint64_t piece_end = piece.vaddr + piece.size();
  std::uint64_t step = kStep;
  for (std::uint64_t at = piece.vaddr; at < piece_end && !space.closed;) {
    // Anew each time: what is missing may have changed while it was filled.
    const auto parts = space.missing.of_origin(at, piece_end);
    if (parts.empty()) {
      return {};
    }
    const Missing::Part& part = parts.front();
    const std::uint64_t size = std::min(part.end - part.start, step);
    FERRY_TRY(const auto filled, piece.zeros != 0
                                     ? sys::missing_zero(space.uffd.get(), part.start, size)
                                     : sys::missing_copy(space.uffd.get(), part.start,
                                                         piece.pages.data() + (part.origin - piece.vaddr), size));
    space.missing.remove(part.start, part.start + filled.bytes);
    report_.pages += piece.zeros != 0 ? 0 : filled.bytes / kPage;
    switch (filled.end) {
      case sys::Fill::done:
        step = std::min(2 * step, kStep);
        break;
      case sys::Fill::busy: {
        pollfd readable{space.uffd.get(), POLLIN, 0};
        (void)::poll(&readable, 1, 1);  // the change is under way and about to be told
        FERRY_CHECK(read_events(space));
        break;
      }
      case sys::Fill::there:
        space.missing.remove(part.start, part.start + kPage);
        (void)sys::missing_wake(space.uffd.get(), part.start, kPage);
        break;
      case sys::Fill::unmapped:
        // Said of the whole range also if it only lies in two mappings: one page cannot.
        if (size > kPage) {
          step = size / 2 / kPage * kPage;
        } else {
          space.missing.remove(part.start, part.start + kPage);
        }
        break;
      case sys::Fill::unreadable:
        if (!std::exchange(told_unreadable_, true)) {
          log::error({Kind::corrupt,
                      0,
                      fmt::format("page {:#x} of process {} cannot be read from its pages file (was it "
                                  "cut?); who touches it waits until it can be",
                                  part.origin, piece.pid),
                      {},
                      __FILE__,
                      __LINE__});
        }
        trouble_ = true;
        next_try_ = Clock::now() + kRetryAfter;
        asked_[piece.pid].stuck.add(part.origin, part.origin + size);
        at = part.origin + size;
        break;
      case sys::Fill::gone:
        space.closed = true;
        break;
    }
  }
  return {};
}

void FaultServer::arrived(NsPid pid, std::uint64_t start, std::uint64_t end) {
  Asked& asked = asked_[pid];
  asked.urgent.remove(start, end);
  // What has come on both ways was counted when the first of them came.
  std::uint64_t landed = end - start;
  for (const auto& range : state::memory::without({{start, end}}, asked.flying.ranges())) {
    landed -= range.end - range.start;
  }
  asked.flying.remove(start, end);
  flying_ -= std::min(flying_, landed);
}

void FaultServer::lose(Source& source, const Error& error) {
  log::error(error);
  log::warning("no page comes from there any more; who touches a missing one waits, and the connection is made anew");
  (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, source.source->descriptor(), nullptr);
  source.lost = true;
  trouble_ = true;
  next_try_ = Clock::now() + kRetryAfter;
  for (auto& [pid, asked] : asked_) {
    asked.flying = {};
    asked.urgent = {};
  }
  flying_ = 0;
}

// What could not be had, again.
Result<void> FaultServer::retry() {
  if (!trouble_ || Clock::now() < next_try_) {
    return {};
  }
  trouble_ = false;
  next_try_ = Clock::now() + kRetryAfter;
  for (Source& source : sources_) {
    if (!source.lost) {
      continue;
    }
    if (const auto recovered = source.source->recover(); !recovered.has_value()) {
      trouble_ = true;
      continue;
    }
    log::warning("the connection is there again");
    source.lost = false;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = source.source->descriptor();
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, event.data.fd, &event) != 0) {
      return sys_fail("epoll_ctl(page source)");
    }
  }
  for (auto& [pid, asked] : asked_) {
    asked.stuck = {};
  }
  // Those whom somebody waits for first.
  hints_.clear();
  for (const auto& [page, since] : waiting_) {
    hints_.push_back(page);
  }
  for (const auto& page : std::vector<Page>(hints_)) {
    if (!askable(page.first, page.second, page.second + kPage).empty()) {
      FERRY_TRY([[maybe_unused]] const bool asked, ask({page.first, page.second, page.second + kPage}, true));
    }
  }
  return {};
}

// The neighbours of recent faults.  False: there are none to ask for.
Result<bool> FaultServer::ask_about_hints() {
  while (!hints_.empty()) {
    const auto [pid, page] = hints_.back();
    hints_.pop_back();
    const std::uint64_t start = page / kNeighbourhood * kNeighbourhood;
    for (std::size_t i = 0; i < spaces_.size(); ++i) {
      if (spaces_[i]->pid != pid || spaces_[i]->closed) {
        continue;
      }
      bool asked = false;
      for (const Missing::Part& part : spaces_[i]->missing.of_origin(start, start + kNeighbourhood)) {
        for (const auto& range : askable(pid, part.origin, part.origin + (part.end - part.start))) {
          FERRY_TRY(const bool one, ask({pid, range.start, range.end}));
          asked = asked || one;
        }
      }
      if (asked) {
        return true;
      }
    }
  }
  return false;
}

// One step, if there is room for it.  True: there may be another one at once.
Result<bool> FaultServer::go_on_in_background() {
  if (flying_ >= 2 * chunk_ || spaces_.empty()) {
    return false;
  }
  FERRY_TRY(const bool hinted, ask_about_hints());
  if (hinted) {
    return true;
  }
  for (std::size_t looked = 0; looked <= spaces_.size();) {
    next_space_ = next_space_ < spaces_.size() ? next_space_ : 0;
    Space& space = *spaces_[next_space_];
    const auto part = space.closed ? std::nullopt : space.missing.next(next_address_);
    if (!part.has_value()) {
      ++looked;
      ++next_space_;
      next_address_ = 0;
      continue;
    }
    // What is copied at once keeps faults waiting; what is only asked for does not.
    const bool at_once = sources_.size() == 1 && sources_.front().source->descriptor() < 0;
    const std::uint64_t size = std::min(part->end - part->start, at_once ? std::min(chunk_, kStep) : chunk_);
    next_address_ = part->start + size;
    bool any = false;
    for (const auto& range : askable(space.pid, part->origin, part->origin + size)) {
      FERRY_TRY(const bool asked, ask({space.pid, range.start, range.end}));
      any = any || asked;
    }
    if (any) {
      if (chunk_ < kLastChunk && Clock::now() - last_fault_ > kQuiet) {
        chunk_ *= 2;
      }
      return true;
    }
    if (trouble_) {
      return false;
    }
  }
  return false;
}

}  // namespace ferry::lazy
