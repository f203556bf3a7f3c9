#include "migrate/post_copy_lane.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "image/page_store.h"
#include "migrate/message.pb.h"

namespace ferry::migrate {
namespace {

// The source gives up after three such times without a word, and comes again.
constexpr std::chrono::seconds kSignOfLife(3);
// Who was asked and says nothing for so long is as good as gone: a new connection costs less than more patience.
constexpr std::chrono::seconds kSilence(10);
// A question has a few dozen bytes: a line that does not take them is broken.
constexpr std::chrono::seconds kTakesAQuestion(5);

}  // namespace

Result<std::unique_ptr<PostCopyLane>> PostCopyLane::make(bool obliged) {
  auto out = std::unique_ptr<PostCopyLane>(new PostCopyLane());
  out->obliged_ = obliged;
  out->poll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  out->kick_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!out->poll_ || !out->kick_) {
    return sys_fail("epoll_create1, eventfd (pages that come later)");
  }
  epoll_event event{};
  event.events = EPOLLIN;
  if (::epoll_ctl(out->poll_.get(), EPOLL_CTL_ADD, out->kick_.get(), &event) != 0) {
    return sys_fail("epoll_ctl(pages that come later)");
  }
  return out;
}

void PostCopyLane::connect(Link link) {
  if (!lost_ && !link_.has_value()) {
    install(std::move(link));
    return;
  }
  next_ = std::move(link);
  if (!lost_) {
    doubt("the source has made a new connection");
  }
}

void PostCopyLane::install(Link link) {
  epoll_event event{};
  event.events = EPOLLIN;
  link.give_up_after(kTakesAQuestion);
  link.no_interrupts();
  // A descriptor of its own, since the one that is read from may be the same, and is watched at other times.
  out_ = UniqueFd(::fcntl(link.writing_descriptor(), F_DUPFD_CLOEXEC, 0));
  if (!out_ || ::epoll_ctl(poll_.get(), EPOLL_CTL_ADD, link.descriptor(), &event) != 0) {
    log::error(Error{.kind = Kind::os, .what = "watching a connection for pages", .during = {}});
    return;
  }
  link_ = std::move(link);
  heard_ = said_ = Clock::now();
}

void PostCopyLane::drop() {
  if (link_.has_value()) {
    (void)::epoll_ctl(poll_.get(), EPOLL_CTL_DEL, link_->descriptor(), nullptr);
    link_->close();
    link_.reset();
  }
  wait_until_it_takes_more(false);
  out_.reset();
  asked_.clear();
  unsaid_.clear();
  pieces_.clear();
  broken_.reset();
  ::eventfd_t ignored = 0;
  (void)::eventfd_read(kick_.get(), &ignored);
}

void PostCopyLane::doubt(std::string why) {
  broken_ = std::move(why);
  (void)::eventfd_write(kick_.get(), 1);
}

void PostCopyLane::beat() {
  if (!connected()) {
    return;
  }
  const auto now = Clock::now();
  if (!asked_.empty() && now - heard_ > kSilence) {
    doubt(fmt::format("{} has been asked for pages and says nothing", link_->peer()));
    return;
  }
  if (unsaid_.empty() && now - said_ > kSignOfLife && takes_more()) {
    wire::Message message;
    message.mutable_want();
    if (auto sent = send(message); !sent) {
      doubt(sent.error().message());
    }
  }
}

void PostCopyLane::tell_all_here() {
  if (connected()) {
    wire::Message message;
    message.mutable_all_here();
    if (auto sent = send(message); !sent) {
      log::info("the source learns at its next connection that everything is here: {}", sent.error().message());
    }
  }
}

std::uint64_t PostCopyLane::covers(const Range& range) const {
  return obliged_ || connected() ? std::min<std::uint64_t>(range.end - range.start, kBatchContent) : 0;
}

Result<void> PostCopyLane::send(const wire::Message& message) {
  said_ = Clock::now();
  return link_->send(message);
}

bool PostCopyLane::takes_more() const {
  pollfd now{.fd = out_.get(), .events = POLLOUT, .revents = 0};
  return ::poll(&now, 1, 0) > 0;
}

void PostCopyLane::wait_until_it_takes_more(bool wanted) {
  epoll_event event{};
  event.events = EPOLLOUT;
  // It may be there already, or not any more.
  (void)::epoll_ctl(poll_.get(), wanted ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, out_.get(), &event);
}

// As many questions as the connection takes at once: whoever asks has other faults to serve, which come another way.
Result<void> PostCopyLane::say() {
  while (!unsaid_.empty() && takes_more()) {
    const Range range = unsaid_.front();
    wire::Message message;
    message.mutable_want()->set_pid(static_cast<std::uint32_t>(range.pid.value));
    message.mutable_want()->set_vaddr(range.start);
    message.mutable_want()->set_bytes(range.end - range.start);
    FERRY_CHECK(send(message));
    unsaid_.pop_front();
  }
  return {};
}

Result<void> PostCopyLane::ask(const Range& range) {
  const auto asked = [&]() -> Result<void> {
    if (!connected()) {
      return fail(Kind::gone, "{}", broken_.value_or("there is no connection to the source"));
    }
    if (asked_.empty()) {
      heard_ = Clock::now();
    }
    asked_.push_back(range);
    unsaid_.push_back(range);
    FERRY_CHECK(say());
    if (!unsaid_.empty()) {
      wait_until_it_takes_more(true);
    }
    return {};
  }();
  if (!asked) {
    lost_ = true;
    drop();
  }
  return asked;
}

// It must be what was asked for first, and all of it.
Result<void> PostCopyLane::accept(image::Name name, std::span<const ArrivedPages> runs) {
  if (asked_.empty()) {
    return fail(Kind::corrupt, "{} sent pages that nobody asked for", link_->peer());
  }
  const Range range = asked_.front();
  asked_.pop_front();
  std::uint64_t expected = range.start;
  for (const ArrivedPages& run : runs) {
    const std::uint64_t bytes = run.pages * image::kPageSize;
    if (name != image::Name{image::Type::pagemap, static_cast<std::uint64_t>(range.pid.value)} ||
        run.vaddr != expected || bytes > range.end - expected) {
      break;
    }
    pieces_.push_back({range.pid, run.vaddr, run.content, run.zeros ? bytes : 0});
    expected += bytes;
  }
  if (expected != range.end) {
    return fail(Kind::corrupt, "{} was asked for {:#x}-{:#x} of process {}, and its answer has other pages",
                link_->peer(), range.start, range.end, range.pid);
  }
  return {};
}

Result<std::optional<lazy::PageSource::Piece>> PostCopyLane::take() {
  const auto taken = [&]() -> Result<std::optional<Piece>> {
    if (broken_.has_value()) {
      return fail(Kind::gone, "{}", *broken_);
    }
    if (!unsaid_.empty()) {
      FERRY_CHECK(say());
      if (unsaid_.empty()) {
        wait_until_it_takes_more(false);
      }
    }
    if (pieces_.empty() && link_.has_value()) {
      FERRY_TRY(const auto frame, link_->poll_frame(body_));
      if (!frame.has_value()) {
        return std::optional<Piece>();
      }
      heard_ = Clock::now();
      if (frame->kind != FrameKind::pages) {
        wire::Message message;
        FERRY_CHECK(link_->parse_control(body_, message));  // it may be a Failure, with a reason
        return fail(Kind::corrupt, "{} sent a message where pages belong", link_->peer());
      }
      FERRY_CHECK(reader_.read(body_, link_->peer(), [this](image::Name name, std::span<const ArrivedPages> runs) {
        return accept(name, runs);
      }));
    }
    if (pieces_.empty()) {
      return std::optional<Piece>();
    }
    const Piece piece = pieces_.front();
    pieces_.pop_front();
    return std::optional(piece);
  }();
  if (!taken) {
    lost_ = true;
    drop();
  }
  return taken;
}

Result<void> PostCopyLane::recover() {
  drop();
  if (!next_.has_value()) {
    return fail(Kind::gone, "there is no new connection to the source");
  }
  lost_ = false;
  install(*std::exchange(next_, std::nullopt));
  return {};
}

}  // namespace ferry::migrate
