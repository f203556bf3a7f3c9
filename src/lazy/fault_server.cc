#include "lazy/fault_server.h"

#include <poll.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "image/page_store.h"
#include "state/memory/pages.h"

namespace ferry::lazy {
namespace {

constexpr std::uint64_t kPage = image::kPageSize;
constexpr std::uint64_t kFirstChunk = 64U << 10;
constexpr std::uint64_t kLastChunk = 1U << 20;
constexpr std::chrono::milliseconds kQuiet{10};  // without a fault, before the background takes larger steps
// A copy that has begun keeps faults waiting: no more than this at a time.
constexpr std::uint64_t kStep = 128U << 10;
constexpr std::uint64_t kNeighbourhood = 64U << 10;  // of a fault, brought right after it
constexpr std::size_t kMaxHints = 256;
constexpr std::size_t kMaxLatencies = 1U << 20;
constexpr std::chrono::milliseconds kRetryAfter{500};

}  // namespace

FaultServer::FaultServer() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), chunk_(kFirstChunk) {}

void FaultServer::add_source(PageSource& source) { sources_.push_back({&source}); }

Result<void> FaultServer::watch(int fd, std::function<Result<bool>()> ready) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return sys_fail("epoll_ctl(lazy pages)");
  }
  watched_.emplace(fd, std::move(ready));
  return {};
}

Result<void> FaultServer::add_process(NsPid pid, UniqueFd uffd, Missing missing) {
  last_fault_ = Clock::now();  // its first faults are about to come
  auto space = std::make_unique<Space>();
  space->pid = pid;
  space->uffd = std::move(uffd);
  space->missing = std::move(missing);
  return add_space(std::move(space));
}

Result<void> FaultServer::add_space(std::unique_ptr<Space> space) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = space->uffd.get();
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, space->uffd.get(), &event) != 0) {
    return sys_fail("epoll_ctl(userfaultfd)");
  }
  spaces_.push_back(std::move(space));
  return {};
}

Result<void> FaultServer::run() {
  if (!epoll_) {
    return fail(Kind::os, "epoll_create1 failed");
  }
  for (Source& source : sources_) {
    if (const int fd = source.source->descriptor(); fd >= 0) {
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.fd = fd;
      if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
        return sys_fail("epoll_ctl(page source)");
      }
    }
  }
  for (bool busy = true; !spaces_.empty() || !watched_.empty();) {
    std::array<epoll_event, 64> events{};
    const int timeout = busy ? 0 : trouble_ ? static_cast<int>(kRetryAfter.count()) : -1;
    const int n = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout);
    if (n < 0 && errno != EINTR) {
      return sys_fail("epoll_wait(lazy pages)");
    }
    for (int i = 0; i < n; ++i) {
      const int fd = events[static_cast<std::size_t>(i)].data.fd;
      if (const auto watched = watched_.find(fd); watched != watched_.end()) {
        FERRY_TRY(const bool more, watched->second());
        if (!more) {
          (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
          watched_.erase(fd);
        }
        continue;
      }
      for (Source& source : sources_) {
        if (!source.lost && source.source->descriptor() == fd) {
          FERRY_CHECK(take_from(source));
        }
      }
      for (std::size_t s = 0; s < spaces_.size(); ++s) {
        if (spaces_[s]->uffd.get() == fd) {
          FERRY_CHECK(read_events(*spaces_[s]));
        }
      }
    }
    FERRY_CHECK(serve_faults());
    FERRY_CHECK(retry());
    FERRY_TRY(busy, go_on_in_background());
    busy = busy || !faults_.empty();
    forget_closed();
  }
  return {};
}

// Everything that can be read now; the program goes on with a change once it was read, so what is known of its
// missing pages is changed before anything else is done.
Result<void> FaultServer::read_events(Space& space) {
  while (!space.closed) {
    auto event = sys::missing_read(space.uffd.get());
    if (!event.has_value()) {
      return tl::unexpected<Error>(std::move(event).error());
    }
    if (!event->has_value()) {
      return {};
    }
    sys::MissingEvent& what = **event;
    switch (what.what) {
      case sys::MissingEvent::What::fault:
        faults_.push_back({&space, what.start});
        break;
      case sys::MissingEvent::What::fork: {
        auto child = std::make_unique<Space>();
        child->pid = space.pid;
        child->uffd = std::move(what.child);
        child->missing = space.missing;
        FERRY_CHECK(add_space(std::move(child)));
        break;
      }
      // Who waited for a page in there shall look again: it will not come to this place any more.
      case sys::MissingEvent::What::remap:
        space.missing.move(what.start, what.to, what.end - what.start);
        (void)sys::missing_wake(space.uffd.get(), what.start, what.end - what.start);
        break;
      case sys::MissingEvent::What::remove:
      case sys::MissingEvent::What::unmap:
        space.missing.remove(what.start, what.end);
        (void)sys::missing_wake(space.uffd.get(), what.start, what.end - what.start);
        break;
    }
  }
  return {};
}

Result<void> FaultServer::serve_faults() {
  // Serving one may read further ones, and put back one that has to wait for a change of the memory.
  const auto now = std::exchange(faults_, {});
  for (const Fault& fault : now) {
    FERRY_CHECK(serve(fault));
  }
  return {};
}

Result<void> FaultServer::serve(const Fault& fault) {
  Space& space = *fault.space;
  if (space.closed) {
    return {};
  }
  const auto origin = space.missing.origin_of(fault.page);
  if (!origin.has_value()) {
    return fill_with_zero(fault);
  }
  chunk_ = kFirstChunk;
  last_fault_ = Clock::now();
  waiting_.try_emplace({space.pid, *origin}, last_fault_);
  if (hints_.size() == kMaxHints) {
    hints_.erase(hints_.begin());
  }
  hints_.emplace_back(space.pid, *origin);
  const auto wanted = askable(space.pid, *origin, *origin + kPage);
  if (!wanted.empty()) {
    FERRY_TRY([[maybe_unused]] const bool asked, ask({space.pid, *origin, *origin + kPage}));
  }
  return {};
}

Result<void> FaultServer::fill_with_zero(const Fault& fault) {
  Space& space = *fault.space;
  FERRY_TRY(const auto filled, sys::missing_zero(space.uffd.get(), fault.page, kPage));
  switch (filled.end) {
    case sys::Fill::done:
      break;
    case sys::Fill::busy:
      FERRY_CHECK(read_events(space));
      faults_.push_back(fault);
      break;
    case sys::Fill::there:
    case sys::Fill::unmapped:
    case sys::Fill::unreadable:
      // Who waits looks again and finds the page, or its own fault.
      (void)sys::missing_wake(space.uffd.get(), fault.page, kPage);
      break;
    case sys::Fill::gone:
      space.closed = true;
      break;
  }
  return {};
}

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

// False if nobody can be asked now.
Result<bool> FaultServer::ask(const PageSource::Range& range) {
  bool any = false;
  for (std::uint64_t at = range.start; at < range.end;) {
    std::uint64_t covered = 0;
    for (Source& source : sources_) {
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
      asked_[range.pid].flying.add(part.start, part.end);
      flying_ += covered;
      any = true;
      if (source.source->descriptor() < 0) {
        FERRY_CHECK(take_from(source));
      }
      break;
    }
    if (covered == 0) {
      log::error({Kind::corrupt, 0, fmt::format("page {:#x} of process {} is in no image and with no page server; who "
                  "touches it waits", at, range.pid), {}, __FILE__, __LINE__});
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
  arrived(piece.pid, piece.vaddr, piece.vaddr + piece.pages.size());
  for (std::size_t i = 0; i < spaces_.size(); ++i) {  // a fork may add one meanwhile
    if (spaces_[i]->pid == piece.pid && !spaces_[i]->closed) {
      FERRY_CHECK(deliver_to(*spaces_[i], piece));
    }
  }
  const auto now = Clock::now();
  auto waiting = waiting_.lower_bound({piece.pid, piece.vaddr});
  while (waiting != waiting_.end() && waiting->first < Page{piece.pid, piece.vaddr + piece.pages.size()}) {
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
  const std::uint64_t piece_end = piece.vaddr + piece.pages.size();
  std::uint64_t step = kStep;
  for (std::uint64_t at = piece.vaddr; at < piece_end && !space.closed;) {
    // Anew each time: what is missing may have changed while it was filled.
    const auto parts = space.missing.of_origin(at, piece_end);
    if (parts.empty()) {
      return {};
    }
    const Missing::Part& part = parts.front();
    const std::uint64_t size = std::min(part.end - part.start, step);
    FERRY_TRY(const auto filled,
              sys::missing_copy(space.uffd.get(), part.start, piece.pages.data() + (part.origin - piece.vaddr), size));
    space.missing.remove(part.start, part.start + filled.bytes);
    report_.pages += filled.bytes / kPage;
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
          log::error({Kind::corrupt, 0, fmt::format("page {:#x} of process {} cannot be read from its pages file (was it "
                      "cut?); who touches it waits until it can be", part.origin, piece.pid), {}, __FILE__, __LINE__});
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
  asked_[pid].flying.remove(start, end);
  flying_ -= std::min(flying_, end - start);
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
      FERRY_TRY([[maybe_unused]] const bool asked, ask({page.first, page.second, page.second + kPage}));
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

void FaultServer::forget_closed() {
  for (auto& space : spaces_) {
    if (!space->closed && space->missing.empty()) {
      space->closed = true;  // with the descriptor goes the registration: new pages are the kernel's business again
    }
  }
  const auto closed = [](const std::unique_ptr<Space>& space) { return space->closed; };
  if (std::none_of(spaces_.begin(), spaces_.end(), closed)) {
    return;
  }
  std::erase_if(faults_, [](const Fault& fault) { return fault.space->closed; });
  std::erase_if(spaces_, closed);
  next_space_ = 0;
  next_address_ = 0;
}

std::uint64_t FaultServer::missing_bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& space : spaces_) {
    bytes += space->missing.bytes();
  }
  return bytes;
}

FaultReport FaultServer::report() const {
  FaultReport out = report_;
  auto sorted = latencies_us_;
  std::sort(sorted.begin(), sorted.end());
  if (!sorted.empty()) {
    out.median_us = sorted[sorted.size() / 2];
    out.p99_us = sorted[sorted.size() * 99 / 100];
  }
  return out;
}

}  // namespace ferry::lazy
