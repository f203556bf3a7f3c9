// The events of the programs: what the server hears, and in which order it goes about it.
#include "lazy/fault_server.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "image/page_store.h"

namespace ferry::lazy {
namespace {

constexpr std::uint64_t kPage = image::kPageSize;
constexpr std::size_t kMaxHints = 256;

}  // namespace

FaultServer::FaultServer() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

void FaultServer::add_source(PageSource& source, Lane lane) { sources_.push_back({&source, lane}); }

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
  if (told_) {
    told_(space->uffd.get(), true);
  }
  spaces_.push_back(std::move(space));
  return {};
}

Result<void> FaultServer::take_pending() {
  for (Source& source : sources_) {
    if (!source.lost && source.source->pending()) {
      FERRY_CHECK(take_from(source));
    }
  }
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
    const bool pending = std::any_of(sources_.begin(), sources_.end(),
                                     [](const Source& source) { return !source.lost && source.source->pending(); });
    const int timeout = busy || pending ? 0 : trouble_ ? static_cast<int>(kRetryAfter.count()) : -1;
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
    FERRY_CHECK(take_pending());
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
  const PageSource::Range page{space.pid, *origin, *origin + kPage};
  const bool fast = has_fast_lane(page);
  chunk_ = fast ? kChunkBesideFaults : kFirstChunk;
  last_fault_ = Clock::now();
  waiting_.try_emplace({space.pid, *origin}, last_fault_);
  if (hints_.size() == kMaxHints) {
    hints_.erase(hints_.begin());
  }
  hints_.emplace_back(space.pid, *origin);
  // What is under way behind other pages is asked for again where nothing stands before it.
  const bool overtakes = fast && !asked_[space.pid].urgent.covers(page.start, page.end) &&
                         !asked_[space.pid].stuck.covers(page.start, page.end);
  if (overtakes || !askable(space.pid, page.start, page.end).empty()) {
    FERRY_TRY([[maybe_unused]] const bool asked, ask(page, true));
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
  for (auto& space : spaces_) {
    if (space->closed && told_) {
      const int number = space->uffd.get();
      space->uffd.reset();
      told_(number, false);
    }
  }
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
