#include "migrate/receive.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>

#include <cerrno>
#include <chrono>

#include "base/log.h"
#include "migrate/direct.h"
#include "migrate/freezer.h"
#include "migrate/hello.h"
#include "migrate/post_copy_door.h"
#include "migrate/receiver.h"
#include "migrate/record.h"
#include "migrate/settle.h"
#include "tracee/thread.h"

namespace ferry::migrate {
namespace {

using container::Docker;
using wire::Message;

constexpr std::chrono::minutes kSourceSilence(30);  // it may be saving a large image

// What is left to do when the receiver was killed: nothing that was not decided may stay.
void clean_up_after(const Guard::Lines& lines) {
  for (const std::string& line : lines) {
    if (line.starts_with("move ")) {
      settle_patiently(line.substr(5), Role::destination);
    }
  }
}

}  // namespace

Receiver::~Receiver() {
  if (stage_ != Stage::taken && !leave()) {
    return;  // the guard goes on trying
  }
  if (book_.has_value()) {
    book_->close(stage_ == Stage::taken ? Outcome::moved : Outcome::stayed, why_);
  }
  guard_.dismiss();
}

Result<void> Receiver::serve() {
  for (;;) {
    auto done = step();
    if (!done) {
      Error error = streams_.break_off(std::move(done).error());
      why_ = error.message();
      return give_up(std::move(error));
    }
    if (*done) {
      return {};
    }
  }
}

bool Receiver::leave() {
  if (held_still_) {
    if (auto killed = kill_frozen(freeze_cgroup_); !killed) {
      log::warning("{}", killed.error().message());
      return false;
    }
  }
  held_.release();
  twin_.reset();
  if (arrival_ && !arrival_->id().empty()) {
    if (auto gone = container::discard_twin(docker_, arrival_->id()); !gone && gone.error().kind != Kind::gone) {
      log::warning("{}", gone.error().message());
      return false;
    }
  }
  if (book_.has_value()) {
    const Entry& entry = book_->entry();
    if (auto undone = container::undo_volumes(docker_, entry.volumes_made, entry.put_aside, move_); !undone) {
      log::warning("{}", undone.error().message());
      return false;
    }
  }
  return true;
}

Result<bool> Receiver::step() {
  const bool holding = stage_ == Stage::taken && !late_;
  auto frame =
      link_.receive_head(holding ? std::chrono::milliseconds(kHoldLimit) : std::chrono::milliseconds(kSourceSilence));
  if (!frame && holding) {
    return output_is_late(frame.error());
  }
  FERRY_CHECK(frame);
  if (frame->kind == FrameKind::pages) {
    FERRY_CHECK(expect(Stage::started, "pages"));
    FERRY_CHECK(reader_.receive(
        link_, *frame, [this](image::Name name, std::span<const ArrivedPages> runs) { return put(name, runs); }));
    return false;
  }
  Message message;
  FERRY_CHECK(link_.receive_control(*frame, message));
  return handle(message);
}

Result<bool> Receiver::handle(const Message& message) {
  switch (message.kind_case()) {
    case Message::kPing:
      return pong();
    case Message::kAsk:
      return answer(message.ask());
    case Message::kOffer:
      FERRY_CHECK(expect(Stage::greeted, "an offer"));
      return offered(message.offer());
    case Message::kStreams:
      FERRY_CHECK(expect(Stage::offered, "the order to listen"));
      FERRY_CHECK(streams_.open(message.streams()));
      return false;
    case Message::kImage:
      FERRY_CHECK(expect(Stage::offered, "an image"));
      return image();
    case Message::kCreate:
      FERRY_CHECK(expect(Stage::offered, "the order to create the twin"));
      return create();
    case Message::kLayer:
      FERRY_CHECK(expect(Stage::created, "files"));
      book_->step(Step::files);
      FERRY_CHECK(storage_->layer(message.layer(), streams_.bulk()));
      return false;
    case Message::kLogFile:
      FERRY_CHECK(expect(Stage::created, "a log"));
      return log_file(message.log_file().suffix());
    case Message::kStart:
      FERRY_CHECK(expect(Stage::created, "the order to start the twin"));
      return start(message.start());
    case Message::kPrecopy:
      FERRY_CHECK(expect(Stage::started, "the order to prepare for its memory"));
      book_->step(Step::rounds);
      return precopy();
    case Message::kRound:
      FERRY_CHECK(expect(Stage::started, "the end of a round"));
      book_->round(++round_, message.round().dirty_pages());
      FERRY_CHECK(streams_.wait_for(message.round().mark()));
      return done();
    case Message::kJoin:
      FERRY_CHECK(expect(Stage::greeted, "a connection for memory"));
      return join(message.join());
    case Message::kPostCopy:
      FERRY_CHECK(expect(Stage::started, "the order to fetch memory later"));
      return post_copy();
    case Message::kStale:
      FERRY_CHECK(expect(Stage::started, "a list of stale pages"));
      return stale(message.stale());
    case Message::kPagesEnd:
      FERRY_CHECK(expect(Stage::started, "the end of all pages"));
      FERRY_CHECK(streams_.end_pages(message.pages_end().mark()));
      return false;
    case Message::kPackets:
      return packets(message.packets());
    case Message::kDelta:
      FERRY_CHECK(expect(Stage::started, "changed files"));
      FERRY_CHECK(storage_->delta(message.delta(), streams_.bulk()));
      return false;
    case Message::kBlocks:
      FERRY_CHECK(expect(Stage::started, "a question for a file"));
      FERRY_CHECK(storage_->blocks(message.blocks()));
      return false;
    case Message::kPatch:
      FERRY_CHECK(expect(Stage::started, "a changed file"));
      FERRY_CHECK(storage_->patch(message.patch(), streams_.bulk()));
      return false;
    case Message::kImages:
      FERRY_CHECK(expect(Stage::started, "a tree"));
      return grow();
    case Message::kGiven:
      FERRY_CHECK(expect(Stage::grown, "the hand-over"));
      FERRY_CHECK(take());
      if (intake_ != nullptr) {
        FERRY_CHECK(fetch_rest());
      }
      return false;
    case Message::kLogTail:
      FERRY_CHECK(expect(Stage::taken, "the end of a log"));
      return log_file(message.log_tail().suffix());
    case Message::kFinish:
      FERRY_CHECK(expect(Stage::taken, "the order to finish"));
      return finish();
    default:
      return fail(Kind::corrupt, "{} sent a message that does not belong here", link_.peer());
  }
}

bool Receiver::twin_died() const {
  pollfd ended{.fd = twin_pidfd_.get(), .events = POLLIN, .revents = 0};
  return twin_pidfd_ && ::poll(&ended, 1, 0) > 0;
}

Result<void> Receiver::expect(Stage stage, std::string_view what) const {
  if (stage_ != stage) {
    return fail(Kind::corrupt, "{} sent {} at the wrong time", link_.peer(), what);
  }
  return {};
}

Result<bool> Receiver::done(std::uint64_t bytes, std::uint64_t entries) {
  Message message;
  message.mutable_done()->set_bytes(bytes);
  message.mutable_done()->set_entries(entries);
  FERRY_CHECK(link_.send(message));
  return false;
}

Result<bool> Receiver::pong() {
  FERRY_CHECK(send_clocks(link_));
  return false;
}

Result<bool> Receiver::answer(const wire::Ask& ask) {
  FERRY_TRY(const Decision decision, decide(ask.move(), Decision::refused));
  Message message;
  if (decision == Decision::taken) {
    const auto entry = read_entry(ask.move(), Role::destination);
    message.mutable_taken()->set_lost(entry.has_value() && entry->pages_due && entry->ended != 0);
  } else {
    message.mutable_refused()->set_reason("the destination did not take the container");
  }
  FERRY_CHECK(link_.send(message));
  return true;
}

Result<bool> Receiver::join(const wire::Join& join) {
  FERRY_CHECK(check_move_id(join.move()));
  FERRY_TRY(const Entry entry, read_entry(join.move(), Role::destination));
  if (!entry.pages_due) {
    Message message;
    message.mutable_all_here();
    FERRY_CHECK(link_.send(message));
    return true;
  }
  if (entry.ended != 0 || !is_at_work(entry)) {
    return fail(
        Kind::gone,
        "container {} was ended here while a part of its memory was on {} only, because the ferry that fetched it was "
        "ended; what is left of it stands frozen there, and \"ferry resolve {} --revive-source\" lets it run on there as it was "
        "when it was given away",
        entry.container_name, entry.peer, join.move().substr(0, 12));
  }
  FERRY_CHECK(bring_connection(join.move(), link_, join.direct(), reached_address(::getenv("SSH_CONNECTION"))));
  return true;
}

Result<void> Receiver::give_up(Error error) {
  link_.end_with(-1, {});
  Message message;
  switch (stage_) {
    case Stage::greeted:
    case Stage::offered:
    case Stage::created:
      message.mutable_failure()->set_reason(error.message());
      break;
    case Stage::started:
    case Stage::grown: {
      // Decided before it is said: whoever asks later gets the same answer.
      const auto decision = decide(move_, Decision::refused);
      if (!decision) {
        return tl::unexpected<Error>(decision.error());
      }
      message.mutable_refused()->set_reason(error.message());
      break;
    }
    case Stage::taken:
      // The source is not needed any more.
      held_.release();
      log::warning("the move ended without its source: {}", error.message());
      return arrival_->finish();
  }
  if (link_.send(message)) {
    return {};  // it is the source's to show
  }
  return tl::unexpected<Error>(std::move(error));
}

Result<void> receive(UniqueFd in, UniqueFd out) {
  constexpr std::chrono::seconds kGreeting(60);
  FERRY_TRY(Guard guard, Guard::post(clean_up_after));
  tracee::block_sigchld();
  ::signal(SIGPIPE, SIG_IGN);
  ::fcntl(in.get(), F_SETPIPE_SZ, 1 << 20);  // where it is no pipe, or not allowed, it stays as it is
  Link link(std::move(in), std::move(out), -1, "the source");
  FERRY_TRY(const HostFacts facts, facts_of_this_host());
  FERRY_CHECK(send_hello(link, facts));
  FERRY_TRY(const HostFacts source, receive_hello(link, kGreeting));
  auto docker = Docker::connect();
  if (!docker) {
    Message message;
    message.mutable_failure()->set_reason(docker.error().message());
    return link.send(message);
  }
  Receiver receiver(link, *docker, guard, source.name);
  return receiver.serve();
}

}  // namespace ferry::migrate
