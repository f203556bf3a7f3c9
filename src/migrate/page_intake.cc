#include "migrate/page_intake.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <chrono>

#include "migrate/message.pb.h"

namespace ferry::migrate {
namespace {

constexpr std::chrono::minutes kSourceSilence(30);  // as long as the source may be busy otherwise
// The mark is on its way when it is waited for: only pages are before it.
constexpr std::chrono::minutes kMarkLimit(10);

}  // namespace

Result<std::unique_ptr<PageIntake>> PageIntake::start(std::vector<Link>& links, TakePages take) {
  UniqueFd failed(::eventfd(0, EFD_CLOEXEC));
  if (!failed) {
    return sys_fail("eventfd");
  }
  std::unique_ptr<PageIntake> out(new PageIntake(std::move(take), std::move(failed)));
  for (Link& link : links) {
    out->streams_.push_back(std::make_unique<Stream>());
    out->streams_.back()->link = &link;
  }
  for (auto& stream : out->streams_) {
    stream->thread = std::thread([self = out.get(), &one = *stream] { self->run(one); });
  }
  return out;
}

PageIntake::~PageIntake() {
  for (auto& stream : streams_) {
    if (stream->thread.joinable()) {
      stream->link->close();
      stream->thread.join();
    }
  }
}

void PageIntake::run(Stream& stream) {
  auto done = read(stream);
  const std::lock_guard<std::mutex> held(lock_);
  if (!done) {
    if (failure_) {
      failure_ = std::move(done);
    }
    ::eventfd_write(failed_.get(), 1);
  }
  changed_.notify_all();
}

Result<void> PageIntake::read(Stream& stream) {
  BatchReader reader;
  for (;;) {
    FERRY_TRY(const Link::Frame frame, stream.link->receive_head(kSourceSilence));
    if (frame.kind == FrameKind::pages) {
      FERRY_CHECK(reader.receive(*stream.link, frame, take_));
      continue;
    }
    wire::Message message;
    if (frame.kind == FrameKind::control) {
      FERRY_CHECK(stream.link->receive_control(frame, message));
    }
    if (!message.has_mark()) {
      return fail(Kind::corrupt, "{} sent something else among pages", stream.link->peer());
    }
    const std::lock_guard<std::mutex> held(lock_);
    if (message.mark().number() != stream.mark + 1) {
      return fail(Kind::corrupt, "{} sent mark {} after {}", stream.link->peer(), message.mark().number(), stream.mark);
    }
    stream.mark = message.mark().number();
    stream.ended = message.mark().last();
    changed_.notify_all();
    if (stream.ended) {
      return {};
    }
  }
}

Result<void> PageIntake::await(std::uint64_t mark, bool last) {
  std::unique_lock<std::mutex> held(lock_);
  const auto here = [&] {
    return !failure_ ||
           std::all_of(streams_.begin(), streams_.end(), [&](const auto& stream) { return stream->mark >= mark; });
  };
  if (!changed_.wait_for(held, kMarkLimit, here)) {
    return fail(Kind::gone, "mark {} of the pages did not come", mark);
  }
  FERRY_CHECK(failure_);
  if (std::any_of(streams_.begin(), streams_.end(),
                  [&](const auto& stream) { return stream->mark != mark || stream->ended != last; })) {
    return fail(Kind::corrupt, "the source's pages and its messages do not belong together");
  }
  return {};
}

Result<void> PageIntake::wait_for(std::uint64_t mark) { return await(mark, false); }

Result<void> PageIntake::finish(std::uint64_t mark) {
  FERRY_CHECK(await(mark, true));
  for (auto& stream : streams_) {
    stream->thread.join();
  }
  return {};
}

Result<void> PageIntake::failure() {
  const std::lock_guard<std::mutex> held(lock_);
  return failure_;
}

}  // namespace ferry::migrate
